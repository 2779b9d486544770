"""`curve_fit` with the signature, the results and the errors of SciPy's."""

import functools
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxfit._core.certificate import Status
from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Setup, solution
from jaxfit._core.options import check_callable
from jaxfit._core.rules import Rules
from jaxfit._linalg.precision import DOUBLE
from jaxfit._linalg.seldom import uncertainty_of
from jaxfit._numpy.speaking import spoken
from jaxfit._programs.compiled import specialised
from jaxfit._programs.host import double_precision, pack, unpack
from jaxfit._scipy import arguments
from jaxfit._scipy.arguments import default_start
from jaxfit._scipy.functions import fitted
from jaxfit._scipy.keywords import settings_of
from jaxfit._scipy.observations import Points, in_units_of, judged, padded, prepare
from jaxfit._scipy.request import Comparison, Door, ScipyRequest, not_finite
from jaxfit._scipy.watch import print_summary
from jaxfit.losses import Likelihood, Prediction


def curve_fit(
    f: Callable,
    xdata: PyTree,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Any = arguments.UNBOUNDED,
    method: str | None = None,
    jac: Callable | str | None = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    rowwise: bool = False,
    host: bool = False,
    **kwargs: Any,
) -> tuple:
    """Fit `f(xdata, *parameters)` to `ydata`: SciPy's `curve_fit`, compiled.

    The model may be written with NumPy and scipy.special or with `jax.numpy`. It is
    compiled once, also when it is a lambda made anew on every call; the numbers are
    free. Everything is computed in float64. What cannot be compiled (`if` on a
    parameter, the math module, a call into C, SciPy's integrators) NumPy computes
    itself, with differences for derivatives; see `jaxfit.HostModelWarning`.

    Whatever `method` is named, one algorithm runs: bounded Trust Region Reflective
    (Branch, Coleman and Li, SIAM J. Sci. Comput. 21, 1999) with exact derivatives and
    parameters scaled by their Jacobian columns. Without a tolerance it stops where
    `jaxfit.solve` does, at many more digits than SciPy. A tolerance that is given means
    SciPy's test; the fit still ends only at a point that the certificate of
    `jaxfit.Solution` accepts.

    Args:
        f: the model, `f(x, a, b, ...)` or `f(x, *p)`: a function, method, partial,
            jitted function or callable `eqx.Module`.
        xdata: what `f` takes first: an array of any shape, SciPy's (k, m) for k
            predictors, a pytree of arrays, or None. Numbers become float64, and so do
            dates and times as SciPy has them: in the array's own unit, since 1970.
        ydata: observations; more than one dimension is ravelled. The model's output has
            this shape, or is a scalar, or is as long as `ydata` has elements. Points
            that are masked in `xdata`, `ydata` or `sigma` are left out.
        p0: the start. None is 1 for each parameter, or a point inside the bounds.
        sigma: standard errors of `ydata`, a number or one for each, or their covariance
            matrix (m, m).
        absolute_sigma: whether `sigma` has the units of `ydata`, or is relative.
        check_finite: whether to refuse NaN and infinity in the data. None: unless
            `nan_policy` is given.
        bounds: (lower, upper), each a number or one for each parameter, or a
            `scipy.optimize.Bounds`. Equal bounds fix a parameter.
        method: None, "trf", "dogbox" or "lm", whose conventions about bounds and the
            number of points are kept.
        jac: None for automatic differentiation, or a function `jac(x, a, b, ...)` that
            returns (m, n). SciPy's "2-point", "3-point" and "cs" are accepted; they say
            how a model on the host is differentiated.
        full_output: return SciPy's five-tuple.
        nan_policy: None, "raise", or "omit" to leave out points with NaN.
        rowwise: `f` treats each point by itself, so that the data may be padded to one
            of a few lengths: then another number of points compiles nothing. The points
            are the last axis of `xdata`, or else its first.
        host: let NumPy compute the model, without being told.
        **kwargs: keywords of `least_squares`: ftol, xtol, gtol, x_scale, loss, f_scale,
            max_nfev, verbose, callback, diff_step, tr_solver, tr_options; and of
            `leastsq`: maxfev, diag, epsfcn. `loss` may also be a likelihood, such as
            `jaxfit.losses.Poisson()` where `ydata` are counts: then sigma is refused,
            and pcov is the inverse expected information.

    Returns:
        popt (n,) and pcov (n, n). With `full_output` also a dictionary (nfev, fvec,
        fjac, ipvt, qtf), the message and the status.

    Raises:
        ValueError, TypeError: for arguments that cannot be fitted.
        RuntimeError: the fit failed; the message says where it stood and what to try.

    Warns:
        jaxfit.HostModelWarning: the model cannot be compiled, why, and at which line.
        scipy.optimize.OptimizeWarning: the data do not determine every parameter, or
            leave no degree of freedom. `pcov` is infinite.
    """
    check_callable(f, "f", "a model (x, a, b, ...) -> y")
    settings = settings_of(kwargs, method, jac)
    p0, limits = _start_and_bounds(f, p0, bounds, method)
    n = len(p0)
    data = prepare(xdata, ydata, sigma, check_finite, nan_policy)
    m = data.y.size
    uses_lm = method == "lm" or (method is None and limits is None)
    if uses_lm and m != 1:
        _check_enough(n, m)
    weights = None
    if rowwise and m > 1:
        data, weights = padded(data)
    asked = judged(data, settings.loss, m)
    request = ScipyRequest(
        f=f,
        jac=jac if callable(jac) else None,
        x0=p0,
        data=asked.data,
        bounds=limits,
        weights=weights,
        loss=asked.loss,
        options=settings.options(n),
        x_scale=arguments.scales(settings.x_scale, n),
        absolute_sigma=np.bool_(absolute_sigma),
    )
    door = _door(settings.rules, bool(full_output))
    differences = arguments.differences(jac, settings.relative_step, limits, p0)
    (vector, rows), request = fitted(
        door, request, settings.watch, differences, is_on_host=bool(host)
    )
    numbers = unpack(vector, _shapes(n))
    status = Status(int(numbers.status))
    if uses_lm and status != Status.NONFINITE_START:
        _check_enough(n, int(numbers.count))  # one y may stand for all of the model's
    if settings.verbose:
        print_summary(status.message, numbers)
    count = m if m > 1 else None
    if status <= 0:
        raise _failure(status, numbers, door, request, count)
    covariance = _known_covariance(numbers.covariance, limits, status)
    if not full_output:
        return numbers.x, covariance
    details = _details(int(numbers.nfev), *rows, count=count)
    return numbers.x, covariance, details, status.message, int(status)


# Parameters


def _check_enough(n: int, m: int) -> None:
    """Refuse more parameters than residuals, as MINPACK does."""
    if n > m:
        raise TypeError(
            f"The number of func parameters={n} must not exceed the number of data "
            f"points={m}. With method='trf' such a model is fitted, without covariance."
        )


def _start_and_bounds(
    f: Callable, p0: Any, bounds: Any, method: str | None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """The start, and bounds where there are some."""
    if p0 is None:
        n = _number_of_parameters(f)
        limits = arguments.bound_arrays(bounds, n)
        p0 = default_start(limits, n)
    else:
        p0 = arguments.start_array(p0, "p0")
        limits = arguments.bound_arrays(bounds, len(p0))
        arguments.check_inside(p0, limits)
    if method == "lm" and limits is not None:
        raise ValueError(
            "Method 'lm' only works for unconstrained problems. Leave `method` out, or "
            "use 'trf' or 'dogbox'."
        )
    return p0, limits


def _number_of_parameters(f: Callable) -> int:
    """The positional parameters of the model after x."""
    if isinstance(f, types.FunctionType) and not hasattr(f, "__wrapped__"):
        n = f.__code__.co_argcount - 1
    else:
        try:
            parameters = inspect.signature(f).parameters.values()
        except (ValueError, TypeError):
            parameters = ()
        n = sum(
            p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
        )
        n = n - 1
    if n < 1:
        raise ValueError(
            "Unable to determine number of fit parameters. Write the model as "
            "f(x, a, b, ...), or give p0."
        )
    return n


# The program


def _called(f: Callable, parameters: Any, data: Points) -> Any:
    """The model, or its `jac`."""
    return f(data.x, *parameters)


def _held(f: Callable, data: Points) -> Callable:
    """The model with x as it is."""
    x = data.x
    return lambda _, *parameters: f(spoken(x), *parameters)


def _size(data: Points, _: Outcome) -> jax.Array:
    """How large the model is."""
    return jnp.max(jnp.abs(data.y))


def _residual(f: Callable, parameters: jax.Array, data: Points) -> Any:
    """(model - y) / sigma; for a covariance L Lᵀ, L⁻¹ (model - y).

    Or a `Prediction`, where a likelihood stands in the place of sigma.
    """
    model = _checked_output(_called(f, parameters, data), "f", data.y)
    y = jnp.ravel(data.y)
    if isinstance(data.sigma, Likelihood):
        return Prediction(jnp.broadcast_to(model, y.shape), y, data.sigma)
    return in_units_of(data.sigma, (model if model.size > 1 else jnp.ravel(model)) - y)


def _jacobian(
    jac: Callable, parameters: jax.Array, data: Points
) -> Float[Array, "m n"]:
    matrix = arguments.real_output(_called(jac, parameters, data), "jac")
    n = len(parameters)
    matrix = jnp.reshape(matrix, (-1, n)) if matrix.shape[-1:] == (n,) else matrix
    if matrix.ndim != 2 or (data.y.size > 1 and len(matrix) != data.y.size):
        raise ValueError(
            "The return value of `jac` has wrong shape: expected "
            f"({data.y.size}, {n}), actual {matrix.shape}."
        )
    is_judged = isinstance(data.sigma, Likelihood)
    return matrix if is_judged else in_units_of(data.sigma, matrix)


def _checked_output(output: Any, name: str, y: Any) -> jax.Array:
    """The model's output as a vector, or as a number for all points."""
    output = arguments.real_output(output, name)
    expected = y.shape, (y.size,), ()
    if output.size > 1 and y.size > 1 and output.shape not in expected:
        raise ValueError(
            f"`{name}` returned an array of shape {output.shape}; expected "
            f"{y.shape}, one number for each of `ydata`."
        )
    return jnp.ravel(output)


class _Numbers(NamedTuple):
    """What is computed of a fit."""

    x: Any
    covariance: Any
    cost: Any
    start_cost: Any
    optimality: Any
    status: Any
    nfev: Any
    count: Any


def _shapes(n: int) -> _Numbers:
    return _Numbers((n,), (n, n), *[()] * 6)


def _report(
    full_output: bool, setup: Setup, outcome: Outcome, request: ScipyRequest
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """One vector, and with `full_output` the residuals and their Jacobian."""
    result = solution(setup, outcome)
    numbers = _Numbers(
        x=result.x,
        covariance=uncertainty_of(result, request.absolute_sigma).covariance,
        cost=result.cost,
        start_cost=outcome.start_cost,
        optimality=result.optimality,
        status=result.status,
        nfev=result.nfev,
        count=jnp.asarray(result.count),
    )
    rows = setup.rows.residual_and_jacobian(result.x) if full_output else None
    return pack(numbers), rows


@functools.cache
def _door(rules: Rules, full_output: bool) -> Door:
    return Door(
        call=_called,
        form="numbers",
        residual=_residual,
        jacobian=_jacobian,
        report=specialised(_report, full_output),
        rules=rules,
        comparison=Comparison(held=_held, size=_size, shapes=_shapes),
    )


# Results


def _known_covariance(
    covariance: np.ndarray, bounds: Any, status: Status
) -> np.ndarray:
    """SciPy's convention: infinite throughout if it cannot be estimated.

    But on a kink only for what that holds.
    """
    if np.isfinite(covariance).all():
        return covariance
    from scipy.optimize import OptimizeWarning

    held = np.isinf(np.diag(covariance))
    if status == Status.KINK and not held.all():
        warnings.warn(
            "The best fit lies on a kink of the model: there is no variance of "
            f"parameter {', '.join(map(str, np.flatnonzero(held)))}",
            category=OptimizeWarning,
            stacklevel=3,
        )
        return np.where(np.isnan(covariance), np.inf, covariance)
    warnings.warn(
        "Covariance of the parameters could not be estimated",
        category=OptimizeWarning,
        stacklevel=3,
    )
    covariance = np.full_like(covariance, np.inf)
    if bounds is not None:
        fixed = bounds[0] == bounds[1]
        covariance[fixed] = covariance[:, fixed] = 0
    return covariance


def _details(
    nfev: int, residual: Any, jacobian: Any, count: int | None
) -> dict[str, Any]:
    """SciPy's `infodict`; fjac, ipvt and qtf are MINPACK's pivoted QR of the Jacobian.

    Args:
        count: how many of the rows are no padding; None: all.
    """
    import scipy.linalg

    residual, jacobian = np.array(residual)[:count], np.asarray(jacobian)[:count]
    m, n = jacobian.shape
    qr: Any = scipy.linalg.qr(jacobian, mode="economic", pivoting=True)
    q, r, pivots = qr
    fjac = np.zeros((n, m))
    fjac[:, : len(r)] = r.T
    return {
        "nfev": nfev,
        "fvec": residual,
        "fjac": fjac,
        "ipvt": pivots + 1,
        "qtf": q.T @ residual,
    }


_REASONS = {
    Status.MAX_STEPS: (
        "the maximum number of function evaluations (max_nfev) is exceeded",
        " Give a start p0 nearer to the solution, or bounds that keep the model "
        "sensible, or raise max_nfev.",
    ),
    Status.STALLED: (
        "no step lowers the cost any more, and yet the gradient is not small",
        " Check that the model is continuous and differentiable in its parameters and "
        "that jac, if given, is its derivative; try another p0.",
    ),
    Status.STOPPED: ("the callback stopped the fit", ""),
}


def _shown(x: np.ndarray) -> str:
    return np.array2string(x, precision=8, threshold=20)


def _failure(
    status: Status,
    numbers: _Numbers,
    door: Door,
    request: ScipyRequest,
    count: int | None,
) -> Exception:
    """The error of a fit that found nothing.

    Args:
        count: how many of the rows are no padding; None: all.
    """
    if status == Status.NONFINITE_START:
        if isinstance(request.loss, Likelihood):
            return ValueError(f"{status.message_of_likelihood} p0 is {request.x0}.")
        with double_precision(request.f):
            wrong = not_finite(door, request, count)
        return ValueError(
            f"Residuals are not finite in the initial point, or their derivatives are "
            f"not: at p = {_shown(request.x0)} {wrong}. Give a p0 at which the model "
            "is finite and differentiable, and look for NaN in the data."
        )
    where = f"p = {_shown(numbers.x)}"
    reason, advice = _REASONS[status]
    is_judged = isinstance(request.loss, Likelihood)
    cost = "the cost" if is_judged else "half sum of squares"
    return RuntimeError(
        f"Optimal parameters not found: {reason}. After {numbers.nfev:.0f} evaluations "
        f"the fit stood at {where} with {cost} {numbers.cost:.6g} (at the "
        f"start {numbers.start_cost:.6g}). The cosine between the residuals and the "
        f"model's derivatives was {numbers.optimality:.1e}; success needs "
        f"{DOUBLE.cosine:.0e}.{advice}"
    )
