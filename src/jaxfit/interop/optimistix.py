"""Our fit as a solver of `optimistix.least_squares`: one step is one trip.

    solver = TrustRegionReflective(rtol=1e-8, atol=1e-8)
    optimistix.least_squares(fn, solver, y0, args, options={"lower": 0.0})

Derivatives are optimistix's, by its `adjoint`. That of its default knows of no bounds:
where one may be active, give `adjoint=ImplicitAdjoint()` of this module.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Int, PyTree

from jaxfit._core.bounds import Bounds
from jaxfit._core.certificate import RUNNING, Status
from jaxfit._core.derivative import Outcome, on_face
from jaxfit._core.fit import Request, Setup, set_up, solution
from jaxfit._core.options import DEFAULTS, Limits, Options, without_callable
from jaxfit._core.parameters import Parameters
from jaxfit._core.rules import OURS, Tried
from jaxfit._core.setting import initial_state
from jaxfit._core.state import State, is_running
from jaxfit._core.trip import trip
from jaxfit._linalg.branches import for_each
from jaxfit._linalg.kernels import is_lanes
from jaxfit._rows.residuals import residual_vector

MODES = {"fwd": "fwd", "bwd": "rev"}  # optimistix's names of ours
KNOWN = ("lower", "upper", "jac")

RESULTS = {
    Status.MAX_STEPS: optx.RESULTS.nonlinear_max_steps_reached,
    Status.NONFINITE_START: optx.RESULTS.nonfinite,
    Status.STALLED: optx.RESULTS.nonlinear_divergence,
    Status.INVALID_BOUNDS: optx.RESULTS.nonlinear_divergence,
}


class TrustRegionReflective(optx.AbstractLeastSquaresSolver):
    """Trust Region Reflective least squares with bounds, as `jaxfit.solve` does it.

    A success is a certificate, whichever test ended the fit: see `jaxfit.Solution`,
    which `stats["solution"]` is, with its status, message, covariance and errors.

    The `options` of `optimistix.least_squares`, all optional:

    - `lower`, `upper`: bounds, each a number or a pytree that matches or prefixes `y0`.
      Equal bounds fix a parameter.
    - `jac`: "fwd" or "bwd", how the Jacobian is taken; None for the cheaper.

    Args:
        rtol, atol: the fit also ends when x and the length of the residual vector
            change by less than `atol + rtol * size`, as optimistix's solvers do; zero,
            the default, leaves it to the tests of `jaxfit.Options`.
        norm: of the changes of x, relative to that.
        options: tolerances, scaling, the Jacobian, the number of evaluations: see
            `jaxfit.Options`. Its `derivative` does not matter here.
    """

    rtol: float = 0.0
    atol: float = 0.0
    norm: Callable = optx.max_norm
    options: Options = DEFAULTS

    def __check_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(
                    f"{name} is {value!r}; give a number of Python's, at least 0."
                )
        if not isinstance(self.options, Options):
            raise TypeError(
                f"options is {self.options!r}; expected jaxfit.Options(...). Bounds go "
                "to optimistix.least_squares(..., options={'lower': ..., 'upper': ...})"
            )

    def init(
        self,
        fn: Callable,
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        f_struct: PyTree,
        aux_struct: PyTree,
        tags: frozenset,
    ) -> State:
        """The state before the start is evaluated."""
        setup = self._setup(fn, y, args, options)
        return initial_state(setup.setting, setup.start)

    def step(
        self,
        fn: Callable,
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: State,
        tags: frozenset,
    ) -> tuple[PyTree, State, PyTree]:
        """One trip: the next trial point, evaluated, and all that follows from it."""
        setup = self._setup(fn, y, args, options)
        state = trip(setup.rows.linearize, setup.setting, state)
        y = _like(y, setup.parameters.unravel(state.point.x))
        _, aux = fn(y, args)
        return y, state, aux

    def terminate(
        self,
        fn: Callable,
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: State,
        tags: frozenset,
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        """Whether the fit is over, and how it ended."""
        result = optx.RESULTS.successful
        for status, meaning in RESULTS.items():
            is_so = ~is_running(state) & (state.status == jnp.int32(status))
            result = optx.RESULTS.where(is_so, meaning, result)
        return ~is_running(state), result

    def postprocess(
        self,
        fn: Callable,
        y: PyTree,
        aux: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: State,
        tags: frozenset,
        result: optx.RESULTS,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """The answer, with a `jaxfit.Solution` among the statistics."""
        setup = self._setup(fn, y, args, options)
        stopped = jnp.where(
            is_running(state), jnp.int32(Status.MAX_STEPS), state.status
        )
        ended = dataclasses.replace(state, status=stopped)
        return y, aux, {"solution": solution(setup, Outcome.of(ended))}

    def _setup(
        self, fn: Callable, y: PyTree, args: PyTree, options: dict[str, Any]
    ) -> Setup:
        """The fit: traced, flat, with its bounds."""
        settings, jac = without_callable(self.options)
        if callable(jac):
            jac = _with(jac, args)
        request = Request(
            fn=_with(lambda y, args: fn(y, args)[0], args),
            jac=_mode(options, jac),
            x0=y,
            data=None,  # args may hold what is no array
            bounds=bounds_of(options),
            weights=None,
            loss=None,
            options=settings,
        )
        tests = _Tests(self.rtol, self.atol, self.norm)
        return set_up(request, OURS._replace(tests=tests))


class _Tests(NamedTuple):
    """Our stopping tests and, with tolerances, that of optimistix's own solvers.

    The latter asks for the residuals, of which we keep the length.
    """

    rtol: float
    atol: float
    norm: Callable

    def __call__(
        self, limits: Limits, bounds: Bounds | None, tried: Tried
    ) -> Int[Array, "*lanes"]:
        status = OURS.tests(limits, bounds, tried)
        if not tried.accepted or (self.rtol == 0 and self.atol == 0):
            return status
        old, new = tried.old, tried.point
        is_still = for_each(self._is_still, is_lanes(new.x))(
            (old.x, jnp.sqrt(2 * old.linearization.cost)),
            (new.x, jnp.sqrt(2 * new.linearization.cost)),
        )
        is_last = (status == RUNNING) & is_still & tried.is_step
        return jnp.where(is_last, jnp.int32(Status.COST_AND_STEP), status)

    def _is_still(
        self, old: tuple[Array, Array], new: tuple[Array, Array]
    ) -> Bool[Array, ""]:
        """Whether x, and the length of the residuals, changed by what is tolerated."""
        changes = [
            jnp.abs(after - before) / (self.atol + self.rtol * jnp.abs(after))
            for before, after in zip(old, new, strict=True)
        ]
        return (self.norm(changes[0]) < 1) & (self.norm(changes[1]) < 1)


class ImplicitAdjoint(optx.ImplicitAdjoint):
    """Derivatives by the implicit function theorem, at active bounds too.

    A parameter that its bound holds moves with the bound, and the others as if it were
    fixed there.
    """

    def apply(
        self, primal_fn: Callable, rewrite_fn: Callable, inputs: Any, tags: frozenset
    ) -> PyTree:
        """The solution, with derivatives; `tags` are of another matrix."""
        _, solver, *_ = inputs
        if not isinstance(solver, TrustRegionReflective):
            raise TypeError(
                f"The solver is a {type(solver).__name__}; this adjoint is for "
                "TrustRegionReflective. Give optimistix.ImplicitAdjoint()."
            )
        # a function that closes over nothing, as optimistix asks
        return super().apply(
            primal_fn, lambda *at: _conditions(*at), inputs, frozenset()
        )


def _conditions(y: PyTree, _: Any, inputs: tuple) -> Array:
    """What vanishes at a solution: the slope, or the distance to the bound ahead."""
    fn, _, _, args, options, *_ = inputs

    parameters = Parameters(y)

    def cost(x: Array) -> Array:
        residual = residual_vector(fn(parameters.unravel(x), args)[0], x.dtype)
        return 0.5 * residual @ residual

    x = parameters.ravel(y, "y")
    slope = jax.grad(cost)(x)
    bounds = parameters.bounds(bounds_of(options))
    if bounds is None:
        return slope
    free, face = on_face(x, slope, bounds, bounds)
    return jnp.where(free, slope, x - face)


# The options of `optimistix.least_squares`


def bounds_of(options: dict[str, Any]) -> tuple[PyTree, PyTree] | None:
    """The bounds among the options."""
    unknown = [name for name in options if name not in KNOWN]
    if unknown:
        raise ValueError(
            f"options has {', '.join(map(repr, unknown))}; TrustRegionReflective knows "
            f"{', '.join(map(repr, KNOWN))}."
        )
    if "lower" not in options and "upper" not in options:
        return None
    lower, upper = options.get("lower"), options.get("upper")
    return -jnp.inf if lower is None else lower, jnp.inf if upper is None else upper


def _mode(options: dict[str, Any], jac: Any) -> Any:
    """How the Jacobian is taken."""
    name = options.get("jac")
    if name is None:
        return jac
    if name not in MODES:
        raise ValueError(f"options['jac'] is {name!r}; give 'fwd' or 'bwd'.")
    return MODES[name]


# Small things


def _with(function: Callable, args: PyTree) -> Callable:
    """A function of (y, args) as one of (y, data) that knows its args."""
    return lambda y, _: function(y, args)


def _like(old: PyTree, new: PyTree) -> PyTree:
    """New parameters in the dtypes of the old, which the loop goes round with."""
    return jax.tree.map(lambda old, new: new.astype(old.dtype), old, new)
