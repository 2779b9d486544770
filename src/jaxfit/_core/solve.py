"""One fit as one `lax.while_loop`: bounded Trust Region Reflective least squares.

The method is that of Branch, Coleman and Li (SIAM J. Sci. Comput. 21, 1999), which
SciPy's `trf` implements with an inner loop that shrinks the trust region until a step
is accepted. Here the loop is flat. One trip evaluates one trial point, accepts or
refuses it, adjusts the radius, asks whether the fit is over, and proposes the next
point:

    while_loop(linearize -> accept -> update_radius -> stopping_tests -> propose)

The start is the first trial point, so that the user's function stands in the program
once. `trip.py` has the trip.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._core import bounds as _bounds
from jaxfit._core.derivative import Outcome, Posed, differentiable
from jaxfit._core.lanes import worked_through
from jaxfit._core.options import Options, resolve
from jaxfit._core.parameters import Parameters
from jaxfit._core.solution import Solution
from jaxfit._core.trip import (
    Problem,
    State,
    initial_state,
    is_incomplete,
    is_running,
    trip,
)
from jaxfit._linalg.kernels import is_large, varying_with
from jaxfit._linalg.seldom import reporting
from jaxfit._programs.arrays import ordinary
from jaxfit._programs.compiled import bound, compiled, lean_first
from jaxfit._programs.errors import explained
from jaxfit._programs.many import alone_or_many
from jaxfit._programs.one_function import is_possible
from jaxfit._rows.devices import on_each_device
from jaxfit._rows.linearization import is_linear
from jaxfit._rows.table import split_rows, whole_rows
from jaxfit._rows.visit import Chunked, Rows, Sharded, Task, Whole, placed, visit
from jaxfit.losses import Loss

DEFAULTS = Options()


def solve(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree = None,
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | None = None,
    options: Options | None = None,
    rows: Whole | Chunked | Sharded | None = None,
) -> Solution:
    """Minimise half the sum of the squared residuals `fn(x, data)` over x.

    Bounded Trust Region Reflective least squares (Branch, Coleman and Li, 1999) as one
    XLA program. Pure: it works under `jit`, `vmap`, `scan` and `shard_map`; called
    eagerly it is compiled once for each function and each set of shapes. The solution
    has derivatives by the implicit function theorem: see `Options(derivative=...)`.

    Args:
        fn: residuals of (x, data): an array or a pytree of arrays of any shapes.
            Complex residuals count as their real and imaginary parts.
        x0: the start: a pytree of real floating arrays or scalars. Their common dtype
            is the dtype of the fit.
        data: passed on to `fn`; a pytree. Masked elements are refused; residuals are
            left out by their weights.
        bounds: None, or (lower, upper), each a number or a pytree that matches or
            prefixes `x0`. Equal bounds fix a parameter at that value.
        weights: None, or non-negative numbers that multiply the squared residuals, such
            as 1/sigma², in the residuals' structure or broadcast to it. A residual of
            weight zero does not count and may be NaN.
        loss: a robust loss from `jaxfit.losses`; None is plain least squares.
        options: tolerances, scaling, the Jacobian: see `Options`.
        rows: how residual rows are visited: `Whole()`, which None is too,
            `Chunked(size)`, or `Sharded(mesh, axis)`.

    Returns:
        A `Solution`. Its `success` is a certificate. Nothing is raised for what only
        the numbers show: a start outside its bounds or NaN data is a status.

    Raises:
        ValueError, TypeError: at trace time, for arguments of the wrong kind or shape.
    """
    check_callable(fn, "fn", "a function (x, data) -> residuals")
    options = DEFAULTS if options is None else options
    check_arguments(loss, options, rows)
    options, jac = without_callable(options)
    x0, data, bounds, weights = ordinary((x0, data, bounds, weights))
    if isinstance(rows, Sharded):
        rows, data, weights = placed(rows, data, weights)
    arguments = x0, data, bounds, weights, loss, options, rows
    with explained(fn):
        if isinstance(rows, Sharded):
            return compiled(bound(_solve, False), (fn, jac), arguments)
        return lean_first(_solve, (fn, jac), arguments)


def without_callable(options: Options) -> tuple[Options, Any]:
    """Options as numbers alone, and the way to the Jacobian."""
    if options.jac is None:
        return options, None
    return dataclasses.replace(options, jac=None), options.jac


def check_callable(fn, name: str, expected: str) -> None:
    """Refuse what is no function."""
    if not callable(fn):
        raise TypeError(f"{name} is {fn!r}; expected {expected}.")


def check_arguments(loss, options, rows) -> None:
    """Refuse arguments of the wrong class."""
    if not isinstance(options, Options):
        raise TypeError(f"options is {options!r}; expected jaxfit.Options(...).")
    check_loss(loss)
    if not (rows is None or isinstance(rows, (Whole, Chunked, Sharded))):
        raise TypeError(
            f"rows is {rows!r}; expected None, jaxfit.Whole(), jaxfit.Chunked(size) or "
            "jaxfit.Sharded(mesh, axis)."
        )


def check_loss(loss) -> None:
    """Refuse what is no loss."""
    if not (loss is None or isinstance(loss, Loss)):
        raise TypeError(
            f"loss is {loss!r}; expected None or an instance of a loss, such as "
            "jaxfit.losses.Huber(1.0)."
        )


def _solve(is_lean: bool, callables, arguments) -> Any:
    """`solve` without its compilation."""
    *arguments, rows = arguments
    if not isinstance(rows, Sharded) or rows.mesh is None:
        setup = set_up(*callables, *arguments, rows=rows, is_lean=is_lean)
        if is_lean:
            found, is_incomplete = run(setup, whole_outcome)
            return solution(setup, found), is_incomplete
        arrays, rest = eqx.partition(setup, eqx.is_array)

        def pose(arrays):
            return eqx.combine(arrays, rest)

        found = differentiable(
            lambda arrays: run(pose(arrays), whole_outcome),
            lambda arrays: pose(arrays).posed,
        )(arrays)
        return solution(setup, found)
    x0, data, bounds, weights, loss, options = arguments

    def fit(data, weights, counts, others):
        x0, bounds, loss, options = others
        here = Sharded(None, rows.axis, rows.size, counts)
        return _solve(
            False, callables, (x0, data, bounds, weights, loss, options, here)
        )

    observed, others = split_rows(data, weights), (x0, bounds, loss, options)
    return on_each_device(rows.mesh, rows.axes, rows.counts, fit, observed, others)


class Setup(NamedTuple):
    """A fit before its first trip: a pytree of arrays and of what is none."""

    parameters: Parameters
    problem: Problem
    rows: Rows
    start: Float[Array, " n"]
    gauss_newton: bool  # derivatives
    is_one_function: bool
    in_parts: bool  # each of many is one function, where they lie on one device

    @property
    def posed(self) -> Posed:
        """What derivatives are taken of."""
        return Posed(self.rows, self.problem.bounds, self.gauss_newton)

    def of_others(self, x0, data, bounds, weights) -> "Setup":
        """The same model's fit of other arrays, of all rows at once."""
        start = self.parameters.ravel(x0, "x0")
        rows = self.rows._replace(observed=whole_rows(data, weights))
        bounds = self.parameters.bounds(bounds)
        problem = dataclasses.replace(self.problem, bounds=bounds)
        start = varying_with(start, eqx.filter((rows, problem), eqx.is_array))
        return self._replace(problem=problem, rows=rows, start=start)


def set_up(
    fn, jac, x0, data, bounds, weights, loss, options, rows=None, **mode
) -> Setup:
    """Trace the residual function and flatten the parameters.

    Args:
        mode: `scipy_steps`, `scipy_tests` and `is_lean` of `Problem`; the others are
            those of `solve`.
    """
    parameters = Parameters(x0)
    start = parameters.ravel(x0, "x0")
    start = varying_with(start, (data, weights, bounds, loss, options))
    task = Task(fn, jac, parameters.unravel, loss)
    traced = visit(rows, task, data, weights, start)
    constants = traced.residuals.constants, traced.residuals.more
    varied = varying_with(start, constants)
    if jax.typeof(varied) != jax.typeof(start):  # it closes over what varies
        traced, start = visit(rows, task, data, weights, varied), varied
    problem = problem_of(parameters, bounds, loss, options, **mode)
    choice = options.one_function
    whole = not is_large(start) and traced.can_be_one_function(start)
    possible = is_possible(choice) and not is_large(start)
    problem = dataclasses.replace(
        problem,
        is_smooth=traced.is_smooth,
        in_one_function=possible and not whole,
    )
    in_parts = whole and is_possible(choice, in_parts=True)
    return Setup(
        parameters=parameters,
        problem=problem,
        rows=traced.in_columns(in_parts),
        start=start,
        gauss_newton=options.derivative == "gauss-newton",
        is_one_function=possible and whole,
        in_parts=in_parts,
    )


def problem_of(
    parameters: Parameters, bounds: Any, loss: Loss | None, options: Options, **mode
) -> Problem:
    """What does not change during a fit, flat."""
    x_scale = options.x_scale
    if x_scale is not None:
        x_scale = parameters.ravel(x_scale, "x_scale")
    return Problem(
        limits=resolve(options, parameters.size, parameters.dtype),
        bounds=parameters.bounds(bounds),
        x_scale=x_scale,
        is_linear=is_linear(loss),
        **mode,
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

    def posed(arrays):
        return eqx.combine(arrays, rest)

    def whole(arrays):
        setup, report = posed(arrays)
        found, is_lean = Outcome.of(_loop(setup)), setup.problem.is_lean
        with reporting(is_lean) as flags:
            result = report(setup, found)
        if not is_lean:
            return result
        incomplete = is_incomplete(setup.problem, found.status)
        return result, functools.reduce(operator.or_, flags, incomplete)

    if setup.rows.residuals.sees_a_batch:
        return whole(arrays)
    return alone_or_many(
        whole,
        arrays,
        idle,
        in_one_function=setup.is_one_function,
        in_parts=setup.in_parts,
        lanes=functools.partial(worked_through, posed, lanes),
        is_lanes=lanes is not None,
    )


def whole_outcome(setup: Setup, found: Outcome) -> Outcome:
    """The report of all that was found."""
    return found


def started(setup: Setup) -> Outcome:
    """What is known before the first trip."""
    return Outcome.of(initial_state(setup.problem, setup.start))


def _loop(setup: Setup) -> State:
    linearize, agreed = setup.rows.linearize, setup.rows.agreed
    return lax.while_loop(
        is_running,
        lambda state: agreed(trip(linearize, setup.problem, state)),
        agreed(initial_state(setup.problem, setup.start)),
    )


def solution(setup: Setup, found: Outcome) -> Solution:
    """The result in the user's structure."""
    return solution_of(setup.parameters, setup.problem.bounds, found)


def solution_of(
    parameters: Parameters,
    bounds: _bounds.Bounds | None,
    found: Outcome,
) -> Solution:
    """The result of one fit in the user's structure."""
    active = free = None
    if bounds is not None:
        active, free = _bounds.active_set(found.x, bounds), bounds.free
    return Solution(
        x=parameters.unravel(found.x),
        status=found.status,
        optimality=found.optimality,
        steps=found.steps,
        nfev=found.nfev,
        linearization=found.linearization,
        bounds_active=active,
        bounds_free=free,
    )
