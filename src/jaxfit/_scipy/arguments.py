"""What NumPy and SciPy users pass in: checked, and in double precision."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jaxfit import losses
from jaxfit._core.auto_scale import has_own_scale
from jaxfit._core.options import Options
from jaxfit._numpy.differences import Differences
from jaxfit._programs.arrays import (
    in_a_unit,
    is_masked,
    kind_of_moments,
    refuse_masks,
    with_nan,
)

UNBOUNDED = (-np.inf, np.inf)
SCIPY_TOLERANCE = 1e-8
EPS = np.finfo(float).eps


def real_array(value: Any, name: str) -> np.ndarray:
    """An array-like of real numbers in double precision, with nothing masked."""
    if type(value) is np.ndarray and value.dtype == np.float64:
        return value
    refuse_masks((value,), (name,))
    refuse_tracers(value, name)
    try:
        array = np.asarray(value)
        is_moments = kind_of_moments(array) is not None
        if array.dtype.kind in "OUS" and not is_moments:  # numbers as objects
            array = np.asarray(value, float)
    except (ValueError, TypeError) as error:
        raise type(error)(
            f"{name} is {shorten(value)}; expected an array of real numbers."
        ) from error
    if array.dtype.kind == "c":
        raise ValueError(
            f"{name} must be real; its dtype is {array.dtype}. Give real and imaginary "
            "parts one after the other, np.concatenate([z.real, z.imag]), to a model "
            "that returns both likewise; or use jaxfit.solve, which takes complex "
            "residuals."
        )
    if is_moments:
        raise TypeError(f"{name} has the dtype {array.dtype}; {in_a_unit(array)}")
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must be real; its dtype is {array.dtype}.")
    return np.asarray(array, np.float64)


def real_points(value: Any, name: str) -> np.ndarray:
    """`real_array`, in which masked elements are NaN and stay masked."""
    if not is_masked(value):
        return real_array(value, name)
    return np.ma.MaskedArray(real_array(with_nan(value), name), value.mask)


def complex_points(value: Any) -> np.ndarray:
    """Complex numbers in double precision; masked ones stay masked."""
    refuse_tracers(value, "y")
    return np.asanyarray(value, np.complex128)


def coordinates(x: Any, convert: Callable = real_points) -> PyTree:
    """`x` of a model, each array and each list or tuple of numbers by a function."""
    if isinstance(x, np.ndarray):
        return convert(x, "x")
    return jax.tree.map(lambda leaf: convert(leaf, "x"), x, is_leaf=is_numbers)


def is_numbers(node: Any) -> bool:
    """Whether it is a list or tuple of numbers, or a list of such lists."""
    if not isinstance(node, (list, tuple)) or hasattr(node, "_fields"):
        return False
    return len(node) > 0 and all(
        (isinstance(node, list) and is_numbers(item))
        or not (isinstance(item, (list, tuple, Mapping)) or getattr(item, "ndim", 0))
        for item in node
    )


def refuse_tracers(tree: Any, name: str) -> None:
    """An entrance that checks numbers cannot be part of a traced program."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"{name} is traced by JAX. Inside jit, vmap or grad use jaxfit.solve, "
            "which is pure; this function checks its arguments and returns NumPy."
        )


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def start_array(x0: Any, name: str) -> np.ndarray:
    """The start as a vector of finite numbers."""
    x0 = np.atleast_1d(real_array(x0, f"`{name}`"))
    if x0.ndim > 1:
        raise ValueError(f"`{name}` must have at most 1 dimension; it has {x0.ndim}.")
    if x0.size == 0:
        raise ValueError(f"`{name}` is empty; a fit needs at least one parameter.")
    if not np.isfinite(x0).all():
        raise ValueError(f"`{name}` is {x0}; it must be finite.")
    return x0


def bound_arrays(bounds: Any, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Lower and upper bounds of n parameters, or None where there are none.

    Args:
        bounds: a pair of numbers or arrays, or a `scipy.optimize.Bounds`.
    """
    if bounds is None or bounds is UNBOUNDED:
        return None
    is_instance = hasattr(bounds, "lb") and hasattr(bounds, "ub")
    if is_instance:
        bounds = bounds.lb, bounds.ub
    if not isinstance(bounds, (tuple, list, np.ndarray)) or len(bounds) != 2:
        raise ValueError(
            f"`bounds` must contain 2 elements, (lower, upper); it is "
            f"{shorten(bounds)}."
        )
    pair = []
    for name, bound in zip(("lower", "upper"), bounds, strict=True):
        bound = real_array(bound, f"The {name} bound")
        if bound.ndim == 0 or (is_instance and bound.size == 1):
            bound = np.full(n, bound.reshape(()))
        if bound.shape != (n,):
            raise ValueError(
                f"Inconsistent shapes: the {name} bound has shape {bound.shape}, and "
                f"there are {n} parameters. Give a number or one number for each."
            )
        if np.isnan(bound).any():
            raise ValueError(
                f"The {name} bound is {bound}; use inf where there is none."
            )
        pair.append(bound)
    lower, upper = pair
    if (lower > upper).any():
        raise ValueError(
            "Each lower bound must not exceed its upper bound; parameters "
            f"{np.flatnonzero(lower > upper).tolist()} have {lower} and {upper}."
        )
    if (lower == -np.inf).all() and (upper == np.inf).all():
        return None
    return lower, upper


def check_inside(x0: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Refuse a start outside its bounds; a fixed parameter's start does not count."""
    if bounds is None:
        return
    lower, upper = bounds
    outside = ((x0 < lower) | (x0 > upper)) & (lower < upper)
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"Initial guess is outside of provided bounds: parameter {i} starts at "
            f"{x0[i]:g} and its bounds are [{lower[i]:g}, {upper[i]:g}]."
        )


def default_start(bounds: tuple[np.ndarray, np.ndarray] | None, n: int) -> np.ndarray:
    """SciPy's start: 1, or the middle of the bounds, or 1 away from the only one."""
    if bounds is None:
        return np.ones(n)
    lower, upper = bounds
    has_lower, has_upper = np.isfinite(lower), np.isfinite(upper)
    with np.errstate(invalid="ignore"):
        middle = lower + 0.5 * (upper - lower)
    one_sided = np.where(has_lower, lower + 1, np.where(has_upper, upper - 1, 1.0))
    return np.where(has_lower & has_upper, middle, one_sided)


def one_of(name: str, value: Any, allowed: tuple) -> None:
    """Refuse what is not among the allowed values."""
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        raise ValueError(f"`{name}` is {value!r}; it must be one of {allowed}.")


def refuse_unsupported(jac_sparsity: Any, workers: Any) -> None:
    """Refuse what SciPy offers and jaxfit does not."""
    if jac_sparsity is not None:
        raise ValueError(
            "`jac_sparsity` is not supported: Jacobians are dense. Leave it out, or "
            "use scipy.optimize.least_squares for thousands of parameters."
        )
    if workers is not None:
        raise ValueError(
            "`workers` is not supported: no finite differences are taken that could be "
            "spread over workers. Leave it out."
        )


_LSMR = {"damp", "atol", "btol", "conlim", "maxiter", "show", "regularize"}


def check_solver_options(tr_solver: str | None, tr_options: Any) -> None:
    """Refuse options that SciPy's solver of the subproblem has not."""
    unknown = set(tr_options or {}) - _LSMR
    if tr_solver == "lsmr" and unknown:
        raise TypeError(
            f"tr_options has {', '.join(sorted(unknown))}, which lsmr does not know."
        )


def tolerances(
    values: Mapping[str, Any], all_above_eps: bool, stacklevel: int
) -> dict[str, float]:
    """SciPy's tolerances, checked; None and 0 turn a test off.

    Args:
        all_above_eps: whether each has to be above the machine epsilon, or one.
        stacklevel: of warnings, from here to the user.
    """
    checked = {}
    for name, value in values.items():
        value = 0.0 if value is None else _number(name, value)
        if not value >= 0:
            raise ValueError(f"`{name}` is {value!r}; a tolerance is not negative.")
        if 0 < value < EPS:
            warnings.warn(
                f"Setting `{name}` below the machine epsilon ({EPS:.2e}) effectively "
                "disables the corresponding termination condition.",
                stacklevel=stacklevel,
            )
        checked[name] = value
    small = [value < EPS for value in checked.values()]
    if all(small) or (all_above_eps and any(small)):
        raise ValueError(
            f"{'All' if all_above_eps else 'At least one'} of the tolerances must be "
            f"higher than machine epsilon ({EPS:.2e}); they are {checked}."
        )
    return checked


def _number(name: str, value: Any) -> float:
    refuse_tracers(value, f"`{name}`")
    if isinstance(value, (str, bytes)) or np.ndim(value) or np.iscomplexobj(value):
        raise TypeError(f"`{name}` is {shorten(value)}; expected a number.")
    return float(value)


def evaluation_limit(max_nfev: Any, default: int | None) -> int | None:
    """The largest number of evaluations."""
    if max_nfev is None:
        return default
    value = _number("max_nfev", max_nfev)
    if not value >= 1:
        raise ValueError(f"`max_nfev` is {max_nfev!r}; it must be positive.")
    return int(min(value, np.iinfo(np.int32).max))


def scales(x_scale: Any, n: int) -> np.ndarray | None:
    """The characteristic size of each of n parameters, or None for 'jac'."""
    if isinstance(x_scale, str) and x_scale == "jac":
        return None
    message = (
        f"`x_scale` is {shorten(x_scale)}; it must be 'jac' or array_like with "
        "positive numbers."
    )
    try:
        x_scale = real_array(x_scale, "`x_scale`")
    except (ValueError, TypeError) as error:
        raise ValueError(message) from error
    if not (np.isfinite(x_scale).all() and (x_scale > 0).all()):
        raise ValueError(message)
    if x_scale.ndim and x_scale.shape != (n,):
        raise ValueError(
            f"`x_scale` has shape {x_scale.shape}, and there are {n} parameters."
        )
    return np.broadcast_to(x_scale, n)


def differences(
    jac: Any,
    relative_step: Any,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    x0: np.ndarray,
) -> Differences:
    """How a model that only NumPy can compute is differentiated.

    Args:
        jac: SciPy's name of a rule, or anything else for its default.
        relative_step: SciPy's `diff_step`.
    """
    lower, upper = (None, None) if bounds is None else bounds
    return Differences(
        rule=jac if isinstance(jac, str) else "2-point",
        relative_step=relative_step,
        lower=lower,
        upper=upper,
        typical=np.abs(x0),
    )


@functools.lru_cache(maxsize=64)
def options(
    ftol: float | None, xtol: float | None, gtol: float | None, max_steps: int | None
) -> Options:
    """`Options` of numbers; made once, since they are checked."""
    return Options(ftol=ftol, xtol=xtol, gtol=gtol, max_steps=max_steps)


# What the user's functions return


def real_output(output: Any, name: str) -> jax.Array:
    """What a user's function returned, as real numbers."""
    try:
        output = jnp.asarray(output)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` returned {shorten(output)}; expected an array of numbers."
        ) from error
    if jnp.issubdtype(output.dtype, jnp.complexfloating):
        raise TypeError(
            f"`{name}` returned dtype {output.dtype}; expected real numbers. Return "
            "jnp.concatenate([z.real, z.imag]), or use jaxfit.solve, which takes "
            "complex residuals."
        )
    if output.dtype == bool:
        raise TypeError(
            f"`{name}` returned dtype bool; expected real numbers. Write "
            "jnp.where(condition, 1.0, 0.0), and mind that it has no derivative."
        )
    return output.astype(jnp.float64)


# Losses

LOSSES = {
    "linear": losses.Linear,
    "soft_l1": losses.SoftL1,
    "huber": losses.Huber,
    "cauchy": losses.Cauchy,
    "arctan": losses.Arctan,
}


class CallableLoss(losses.Loss):
    """SciPy's form of a loss: a function z (m,) -> ρ, ρ', ρ'' as (3, m)."""

    function: Any = None

    def evaluate(self, z: Array) -> tuple[Array, Array, Array]:
        rho = jnp.asarray(self.function(z))
        if rho.shape != (3, *z.shape):
            raise ValueError(
                f"The return value of `loss` callable has wrong shape {rho.shape}; "
                f"expected {(3, *z.shape)}: rho, its first and its second derivative."
            )
        return rho[0], rho[1], rho[2]


def as_loss(loss: Any, f_scale: Any) -> losses.Loss | None:
    """A loss by SciPy's name, by a callable, or one of `jaxfit.losses`."""
    if isinstance(loss, str) and loss in LOSSES:
        scale = _number("f_scale", f_scale)
        if not 0 < scale < np.inf:
            raise ValueError(f"`f_scale` is {f_scale!r}; it must be positive.")
        return None if loss == "linear" else LOSSES[loss](scale)
    if has_own_scale(loss):
        raise ValueError(
            f"`loss` is {loss!r}, which finds its scale. Give a number here, as in "
            f"{type(loss).__name__}(1.0), or use jaxfit.fit or jaxfit.solve."
        )
    if isinstance(loss, losses.Loss):
        if f_scale != 1:
            raise ValueError(
                f"`f_scale` is {f_scale!r}, but the loss {loss} has a scale of its own."
            )
        return loss
    if isinstance(loss, losses.Likelihood):
        raise TypeError(
            f"`loss` is {loss!r}, a likelihood, which judges predictions, and `fun` "
            "returns residuals. Use jaxfit.solve, whose fn returns a "
            "jaxfit.Prediction(mean, observed), or curve_fit and fit, which make it."
        )
    if not callable(loss) or isinstance(loss, type):
        raise ValueError(
            f"`loss` is {loss!r}; it must be one of {tuple(LOSSES)}, a callable "
            "rho(z) -> (3, m), or an instance from jaxfit.losses."
        )
    scale = _number("f_scale", f_scale)
    if not 0 < scale < np.inf:
        raise ValueError(f"`f_scale` is {f_scale!r}; it must be positive.")
    return CallableLoss(scale, loss)
