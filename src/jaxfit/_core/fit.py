"""A fit as a value: what is asked for, what is set up from it, and how it is run."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._core.bounds import Bounds, active_set
from jaxfit._core.derivative import Differentiable, Outcome
from jaxfit._core.lanes import worked_through
from jaxfit._core.options import Options, resolve
from jaxfit._core.parameters import Parameters
from jaxfit._core.rules import OURS, Rules
from jaxfit._core.setting import Setting, initial_state, is_incomplete
from jaxfit._core.solution import Solution
from jaxfit._core.state import State, is_running
from jaxfit._core.trip import trip
from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import is_large
from jaxfit._linalg.seldom import reporting
from jaxfit._programs.many import alone_or_many
from jaxfit._programs.one_function import is_possible
from jaxfit._rows.predictions import kind_of
from jaxfit._rows.table import whole_rows
from jaxfit._rows.visit import ResidualModel, Rows, visit
from jaxfit._rows.ways import Chunked, Sharded, Whole
from jaxfit.losses import Likelihood, Loss


class Request(NamedTuple):
    """What is asked of a fit: the arguments of `solve`, checked; a pytree."""

    fn: Any  # a function; None where only the parameters are asked about
    jac: Any  # of `Options`, apart
    x0: PyTree
    data: PyTree
    bounds: Any
    weights: PyTree
    loss: Loss | Likelihood | None
    options: Options
    rows: Whole | Chunked | Sharded | None = None

    @property
    def numbers(self) -> PyTree:
        """All that a fit depends on, but for its start and its functions."""
        return self.data, self.weights, self.bounds, self.loss, self.options


class Setup(NamedTuple):
    """A fit before its first trip: a pytree of arrays and of what is none."""

    parameters: Parameters
    setting: Setting
    rows: Rows
    start: Float[Array, " n"]
    gauss_newton: bool  # derivatives
    is_one_function: bool
    in_parts: bool  # each of many is one function, where they lie on one device

    @property
    def differentiable(self) -> Differentiable:
        """What derivatives are taken of."""
        return Differentiable(self.rows, self.setting.bounds, self.gauss_newton)

    def of_others(
        self, x0: PyTree, data: PyTree, bounds: Any, weights: PyTree
    ) -> "Setup":
        """A fit of the same model to other arrays, all rows at once."""
        start = self.parameters.ravel(x0, "x0")
        rows = self.rows._replace(table=whole_rows(data, weights))
        flat = self.parameters.bounds(bounds)
        setting = dataclasses.replace(self.setting, bounds=flat)
        start = varying_with(start, eqx.filter((rows, setting), eqx.is_array))
        return self._replace(setting=setting, rows=rows, start=start)


def set_up(request: Request, rules: Rules = OURS, is_lean: bool = False) -> Setup:
    """Trace the residual function and flatten the parameters."""
    parameters = Parameters(request.x0)
    start = parameters.ravel(request.x0, "x0")
    start = varying_with(start, request.numbers)
    model = ResidualModel(request.fn, request.jac, parameters.unravel, request.loss)
    data, weights = request.data, request.weights
    traced = visit(request.rows, model, data, weights, start)
    constants = traced.residuals.constants, traced.residuals.more
    varied = varying_with(start, constants)
    if jax.typeof(varied) != jax.typeof(start):  # it closes over what varies
        traced, start = visit(request.rows, model, data, weights, varied), varied
    options = request.options
    choice = options.one_function
    is_whole = not is_large(start) and traced.can_be_one_function(start)
    can_be_marked = is_possible(choice) and not is_large(start)
    setting = dataclasses.replace(
        setting_of(parameters, request),
        rules=rules,
        is_lean=is_lean,
        is_smooth=traced.is_smooth,
        in_one_function=can_be_marked and not is_whole,
    )
    in_parts = is_whole and is_possible(choice, in_parts=True)
    return Setup(
        parameters=parameters,
        setting=setting,
        rows=traced.in_columns(in_parts),
        start=start,
        gauss_newton=options.derivative == "gauss-newton",
        is_one_function=can_be_marked and is_whole,
        in_parts=in_parts,
    )


def setting_of(parameters: Parameters, request: Request) -> Setting:
    """What does not change during a fit, flat."""
    x_scale = request.options.x_scale
    if x_scale is not None:
        x_scale = parameters.ravel(x_scale, "x_scale")
    return Setting(
        limits=resolve(request.options, parameters.size, parameters.dtype),
        bounds=parameters.bounds(request.bounds),
        x_scale=x_scale,
        kind=kind_of(request.loss),
    )


def run(
    setup: Setup,
    report: Callable[[Setup, Outcome], Any],
    lanes: int | None = None,
    idle: Bool[Array, ""] | None = None,
) -> Any:
    """From the start to the end of a fit, and what is to be reported of it.

    Args:
        setup: the fit.
        report: a function, or a pytree with arrays that can be called.
        lanes: of many fits under `jax.vmap`, so many in flight, on CPUs too.
        idle: of many, marks those that fill up their end, and are not fitted.

    Returns:
        The report; of a lean fit with a flag, whether it needs the whole program.
    """
    arrays, rest = eqx.partition((setup, report), eqx.is_array)

    def rebuilt(arrays: PyTree) -> tuple[Setup, Callable]:
        return eqx.combine(arrays, rest)

    def fit(arrays: PyTree) -> Any:
        setup, report = rebuilt(arrays)
        outcome, is_lean = Outcome.of(_loop(setup)), setup.setting.is_lean
        with reporting(is_lean) as flags:
            reported = report(setup, outcome)
        if not is_lean:
            return reported
        incomplete = is_incomplete(setup.setting, outcome.status)
        return reported, functools.reduce(operator.or_, flags, incomplete)

    if setup.rows.residuals.sees_a_batch:
        return fit(arrays)
    return alone_or_many(
        fit,
        arrays,
        idle,
        in_one_function=setup.is_one_function,
        in_parts=setup.in_parts,
        lanes=functools.partial(worked_through, rebuilt, lanes),
        is_lanes=lanes is not None,
    )


def _loop(setup: Setup) -> State:
    """The whole fit: one trip after the other until it ends."""
    linearize, agreed = setup.rows.linearize, setup.rows.agreed
    return lax.while_loop(
        is_running,
        lambda state: agreed(trip(linearize, setup.setting, state)),
        agreed(initial_state(setup.setting, setup.start)),
    )


# What is reported


def whole_outcome(setup: Setup, outcome: Outcome) -> Outcome:
    """The report of all that was found."""
    return outcome


def outcome_at_start(setup: Setup) -> Outcome:
    """What is known before the first trip."""
    return Outcome.of(initial_state(setup.setting, setup.start))


def solution(setup: Setup, outcome: Outcome) -> Solution:
    """The result in the user's structure."""
    return solution_of(setup.parameters, setup.setting.bounds, outcome)


def solution_of(
    parameters: Parameters, bounds: Bounds | None, outcome: Outcome
) -> Solution:
    """The result of one fit in the user's structure."""
    active = free = None
    if bounds is not None:
        active, free = active_set(outcome.x, bounds), bounds.free
    return Solution(
        x=parameters.unravel(outcome.x),
        status=outcome.status,
        optimality=outcome.optimality,
        steps=outcome.steps,
        nfev=outcome.nfev,
        linearization=outcome.linearization,
        bounds_active=active,
        bounds_free=free,
    )
