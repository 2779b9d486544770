"""`least_squares` with the signature, the results and the errors of SciPy's."""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._core.certificate import Status
from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Setup
from jaxfit._core.options import check_callable
from jaxfit._core.rules import SCIPY
from jaxfit._numpy.host import OnHost
from jaxfit._numpy.speaking import spoken
from jaxfit._programs.arrays import native, refuse_masks
from jaxfit._programs.call import Static
from jaxfit._programs.errors import what_is_not_finite
from jaxfit._programs.host import pack, unpack
from jaxfit._rows.linearization import columns_of
from jaxfit._scipy import arguments
from jaxfit._scipy.functions import fitted
from jaxfit._scipy.request import Comparison, Door, ScipyRequest
from jaxfit._scipy.watch import Watch, print_summary

# The sentences of scipy.optimize.least_squares, which programs compare.
MESSAGES = {
    Status.STOPPED: (
        "Stopped because `callback` function raised `StopIteration` or returned `True`"
    ),
    Status.MAX_STEPS: "The maximum number of function evaluations is exceeded.",
    Status.GRADIENT: "`gtol` termination condition is satisfied.",
    Status.COST: "`ftol` termination condition is satisfied.",
    Status.STEP: "`xtol` termination condition is satisfied.",
    Status.COST_AND_STEP: (
        "Both `ftol` and `xtol` termination conditions are satisfied."
    ),
}


def least_squares(
    fun: Callable,
    x0: Any,
    jac: Callable | str = "2-point",
    bounds: Any = arguments.UNBOUNDED,
    method: str = "trf",
    ftol: float | None = 1e-8,
    xtol: float | None = 1e-8,
    gtol: float | None = 1e-8,
    x_scale: Any = None,
    loss: Any = "linear",
    f_scale: float = 1.0,
    diff_step: Any = None,
    tr_solver: str | None = None,
    tr_options: Mapping[str, Any] | None = None,
    jac_sparsity: Any = None,
    max_nfev: int | None = None,
    verbose: int = 0,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    callback: Callable | None = None,
    workers: Any = None,
    host: bool = False,
) -> Any:
    """Minimise half the sum of squares of `fun`: SciPy's `least_squares`, compiled.

    `fun` may be written with NumPy or with `jax.numpy`; what cannot be compiled NumPy
    computes itself, see `jaxfit.HostModelWarning`. The path, the stopping tests and the
    results are those of SciPy's method "trf" with an exact Jacobian; the whole fit is
    one compiled program, in float64. Status and success follow SciPy's tests, which can
    pass far from a solution: `certified` says whether the point satisfies the
    certificate of `jaxfit.Solution`.

    Args:
        fun: `fun(x, *args, **kwargs)` returns the residuals (m,), or a number.
        x0: the start, (n,) or a number.
        jac: a function like `fun` that returns (m, n), or "2-point", "3-point" or "cs",
            which say how a function on the host is differentiated; any other has exact
            derivatives.
        bounds: (lower, upper), each a number or (n,), or a `scipy.optimize.Bounds`.
            Equal bounds fix a parameter.
        method: "trf", "dogbox" or "lm"; "trf" runs, under the conventions of the method
            that is named (no bounds or loss, m >= n, and x_scale="jac" for "lm").
        ftol, xtol, gtol: SciPy's tolerances: the relative reduction of the cost, the
            relative length of a step, the scaled gradient. None turns a test off.
        x_scale: characteristic sizes of the parameters, or "jac". None is 1.
        loss: "linear", "soft_l1", "huber", "cauchy", "arctan", a callable
            rho(z) -> (3, m), or one of `jaxfit.losses`.
        f_scale: the residual beyond which a point is an outlier.
        diff_step: relative step of differences, of a function on the host.
        tr_solver, tr_options: accepted; the subproblem is solved exactly on an n x n
            matrix, whatever m is.
        jac_sparsity, workers: not supported.
        max_nfev: the largest number of evaluations of `fun`; None is 100 n.
        verbose: 0; 1 for a report at the end; 2 for a line for every iteration.
        args, kwargs: further arguments of `fun` and `jac`. Arrays and floats are inputs
            of the compiled program; other values, integers among them, part of it.
        callback: called after every iteration with x or, if its only parameter is named
            `intermediate_result`, with an `OptimizeResult`. StopIteration ends the fit.
            The fit then runs one compiled step at a time.
        host: let NumPy compute `fun`, without being told.

    Returns:
        `scipy.optimize.OptimizeResult` with x, cost, fun, jac (scaled for the loss),
        grad, optimality, active_mask, nfev, njev, status, message, success, certified.

    Raises:
        ValueError, TypeError: for arguments that cannot be used.
    """
    check_callable(fun, "fun", "a function x -> residuals")
    arguments.one_of("method", method, ("trf", "dogbox", "lm"))
    if not callable(jac):
        arguments.one_of("jac", jac, ("2-point", "3-point", "cs"))
    arguments.one_of("tr_solver", tr_solver, (None, "exact", "lsmr"))
    arguments.check_solver_options(tr_solver, tr_options)
    arguments.one_of("verbose", int(verbose), (0, 1, 2))
    arguments.refuse_unsupported(jac_sparsity, workers)
    x0 = arguments.start_array(x0, "x0")
    limits = arguments.bound_arrays(bounds, len(x0))
    if method == "lm" and limits is not None:
        raise ValueError("Method 'lm' doesn't support bounds.")
    arguments.check_inside(x0, limits)
    loss = arguments.as_loss(loss, f_scale)
    if method == "lm" and loss is not None:
        raise ValueError("method='lm' supports only 'linear' loss function.")
    tolerances = arguments.tolerances(
        {"ftol": ftol, "xtol": xtol, "gtol": gtol}, method == "lm", stacklevel=3
    )
    if x_scale is None:
        x_scale = "jac" if method == "lm" else 1.0
    max_steps = arguments.evaluation_limit(max_nfev, 100 * len(x0))
    request = ScipyRequest(
        f=fun,
        jac=jac if callable(jac) else None,
        x0=x0,
        data=_inputs(args, kwargs),
        bounds=limits,
        weights=None,
        loss=loss,
        options=arguments.options(**tolerances, max_steps=max_steps),
        x_scale=arguments.scales(x_scale, len(x0)),
    )
    (vector, residual, jacobian), asked = fitted(
        DOOR,
        request,
        Watch(callback, int(verbose)),
        arguments.differences(jac, diff_step, limits, x0),
        is_on_host=bool(host),
    )
    form = Form.of(asked.jac)
    form.check(method, tr_solver, is_scaled=request.x_scale is None)
    numbers = unpack(vector, _shapes(len(x0)))
    if method == "lm" and len(residual) < len(x0):
        raise ValueError(
            "Method 'lm' doesn't work when the number of residuals is less than the "
            f"number of variables; there are {len(residual)} and {len(x0)}. Use 'trf'."
        )
    result = _result(numbers, residual, jacobian, limits, tolerances["xtol"])
    result.jac = form.given(result.jac)
    if method == "lm" and not callable(jac):
        result.njev = None  # MINPACK does not count its differences
    if verbose:
        print_summary(result.message, numbers)
    return result


class Form(enum.Enum):
    """What the user's `jac` returns."""

    DENSE = "an array"
    SPARSE = "a sparse matrix"
    OPERATOR = "a LinearOperator"

    @classmethod
    def of(cls, jac: Any) -> "Form":
        """What one gave that NumPy computes; what is compiled gives arrays."""
        first = jac.first if isinstance(jac, OnHost) else None
        if hasattr(first, "toarray"):
            return cls.SPARSE
        return cls.OPERATOR if hasattr(first, "matmat") else cls.DENSE

    def check(self, method: str, tr_solver: str | None, *, is_scaled: bool) -> None:
        """Refuse what SciPy does: here all are dense in the end, and it would do."""
        if self is Form.DENSE:
            return
        refused = {
            "method='lm'": method == "lm",
            "tr_solver='exact'": tr_solver == "exact",
            "x_scale='jac'": is_scaled and self is Form.OPERATOR,
        }
        for what, is_refused in refused.items():
            if is_refused:
                raise ValueError(
                    f"{what} does not go with {self.value} from `jac`. Return an array."
                )

    def given(self, jacobian: np.ndarray) -> Any:
        """A Jacobian as the user's."""
        if self is Form.SPARSE:
            from scipy.sparse import csr_array

            return csr_array(jacobian)
        if self is Form.OPERATOR:
            from scipy.sparse.linalg import aslinearoperator

            return aslinearoperator(jacobian)
        return jacobian


def _inputs(args: Any, kwargs: Any) -> tuple[tuple, dict]:
    """Arrays and floats in double precision; what else there is as `Static`."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(
            f"`args` is {arguments.shorten(args)}; expected a tuple, such as (a,)."
        )
    if not (kwargs is None or isinstance(kwargs, Mapping)):
        raise TypeError(
            f"`kwargs` is {arguments.shorten(kwargs)}; expected a dictionary."
        )

    def is_leaf(value: Any) -> bool:
        return isinstance(value, list) or hasattr(value, "__array__")

    inputs = tuple(args), dict(kwargs or {})
    refuse_masks(inputs, ("`args`", "`kwargs`"))
    return jax.tree.map(_input, inputs, is_leaf=is_leaf)


def _input(value: Any) -> Any:
    arguments.refuse_tracers(value, "`args`")
    if isinstance(value, (bool, int, str, bytes, np.bool_, np.integer)):
        return Static(value.item() if isinstance(value, np.generic) else value)
    if isinstance(value, list) or hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except ValueError:  # a ragged list
            return Static(value)
        if array.dtype.kind == "f":
            return array.astype(np.float64, copy=False)
        return native(array) if array.dtype.kind in "buic" else Static(value)
    return value


def _residual(fun: Callable, x: jax.Array, inputs: tuple) -> jax.Array:
    residual = arguments.real_output(_call(fun, x, inputs), "fun")
    if residual.ndim > 1:
        raise ValueError(
            "`fun` must return at most 1-d array_like. It returned the shape "
            f"{residual.shape}; ravel it."
        )
    return jnp.atleast_1d(residual)


def _held(fun: Callable, inputs: tuple) -> Callable:
    """The function with its further arguments as they are."""
    return lambda x, *_, **__: _call(fun, x, spoken(inputs))


def _size(_: tuple, outcome: Outcome) -> jax.Array:
    """sum_k D_k |x_k|: how large the model in the residuals is."""
    squared = columns_of(outcome.linearization).squared_norms
    return jnp.sum(jnp.sqrt(squared) * jnp.abs(outcome.x))


def _jacobian(jac: Callable, x: jax.Array, inputs: tuple) -> jax.Array:
    matrix = _call(jac, x, inputs)
    if not isinstance(matrix, jax.Array) and hasattr(matrix, "dot"):
        if not isinstance(matrix, np.ndarray):
            raise TypeError(
                f"`jac` returned a {type(matrix).__name__}; sparse matrices and "
                "LinearOperators are not supported. Return a dense array, or leave "
                "`jac` out."
            )
    return jnp.atleast_2d(arguments.real_output(matrix, "jac"))


def _call(function: Callable, x: Any, inputs: tuple) -> Any:
    args, kwargs = jax.tree.map(
        lambda value: value.value if isinstance(value, Static) else value,
        inputs,
        is_leaf=lambda value: isinstance(value, Static),
    )
    return function(x, *args, **kwargs)


class _Numbers(NamedTuple):
    """What is computed of a fit, but for its residuals and their derivatives."""

    x: Any
    grad: Any
    cost: Any
    start_cost: Any
    optimality: Any
    status: Any
    nfev: Any
    njev: Any
    certified: Any


def _shapes(n: int) -> _Numbers:
    return _Numbers((n,), (n,), *[()] * 7)


def _report(
    setup: Setup, outcome: Outcome, request: ScipyRequest
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One vector, the residuals, and their Jacobian scaled for the loss."""
    numbers = _Numbers(
        x=outcome.x,
        grad=outcome.linearization.gradient,
        cost=outcome.linearization.cost,
        start_cost=outcome.start_cost,
        optimality=outcome.optimality,
        status=outcome.status,
        nfev=outcome.nfev,
        njev=outcome.steps + 1,
        certified=outcome.certified,
    )
    residual, jacobian = setup.rows.residual_and_jacobian(outcome.x)
    return pack(numbers), residual, jacobian


def _result(
    numbers: _Numbers, residual: Any, jacobian: Any, bounds: Any, xtol: float
) -> Any:
    """SciPy's result."""
    from scipy.optimize import OptimizeResult

    status, x = Status(int(numbers.status)), numbers.x
    if status == Status.NONFINITE_START:
        raise ValueError(
            "Residuals are not finite in the initial point, or their derivatives are "
            f"not: at x0 = {x} {what_is_not_finite(residual, jacobian)}. Start where "
            "`fun` is finite and differentiable."
        )
    return OptimizeResult(
        x=x,
        cost=numbers.cost,
        fun=np.array(residual),
        jac=np.array(jacobian),
        grad=numbers.grad,
        optimality=numbers.optimality,
        active_mask=_active_mask(x, bounds, xtol),
        nfev=int(numbers.nfev),
        njev=int(numbers.njev),
        status=int(status),
        message=MESSAGES[status],
        success=status > 0,
        certified=bool(numbers.certified),
    )


def _active_mask(x: np.ndarray, bounds: Any, xtol: float) -> np.ndarray:
    """-1 or 1 for a parameter within SciPy's distance, xtol max(1, |bound|), of one."""
    if bounds is None:
        return np.zeros(len(x), int)
    lower, upper = bounds
    to_lower, to_upper = x - lower, upper - x
    with np.errstate(invalid="ignore"):
        at_lower = to_lower <= np.minimum(to_upper, xtol * np.maximum(1, np.abs(lower)))
        at_upper = to_upper <= np.minimum(to_lower, xtol * np.maximum(1, np.abs(upper)))
    at_lower, at_upper = at_lower & np.isfinite(lower), at_upper & np.isfinite(upper)
    return np.where(at_upper, 1, np.where(at_lower, -1, 0))


DOOR = Door(
    call=_call,
    form="vector",
    residual=_residual,
    jacobian=_jacobian,
    report=_report,
    rules=SCIPY,
    comparison=Comparison(held=_held, size=_size, shapes=_shapes),
)
