"""The observations of `curve_fit`: checked, cut, and padded to common lengths."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxfit._programs.arrays import is_masked, moments, native, with_nan
from jaxfit._rows.predictions import RowNumbers
from jaxfit._scipy.arguments import real_array, real_points, refuse_tracers
from jaxfit.losses import Likelihood

ASYMMETRY = 1e-5  # of a correlation, from rounding, single precision included


class Points(NamedTuple):
    """Points and their errors; of a batch where y has a leading axis."""

    x: PyTree
    y: Any
    sigma: Any  # like y or broadcast to it, or the factor of a covariance; None: 1


def prepare(
    xdata: Any,
    ydata: Any,
    sigma: Any,
    check_finite: bool | None,
    nan_policy: str | None,
) -> Points:
    """Checked observations in double precision, without omitted points."""
    if check_finite is None:
        check_finite = nan_policy is None
    if nan_policy == "propagate":
        raise ValueError("`nan_policy='propagate'` is not supported by this function.")
    if nan_policy not in (None, "raise", "omit"):
        raise ValueError(
            "nan_policy must be one of {None, 'raise', 'omit'}; it is "
            f"{nan_policy!r}."
        )
    y = real_points(ydata, "`ydata`")
    x = _independent(xdata)
    if y.size == 0:
        raise ValueError("`ydata` must not be empty!")
    if sigma is not None:
        sigma = real_points(sigma, "`sigma`")
        if sigma.size == 1 and y.size != 1:
            sigma = sigma.reshape(())
        elif sigma.shape == y.shape:
            sigma = sigma.ravel()
    x, y, sigma = _cut(x, y, sigma, None if check_finite else nan_policy)
    if check_finite:
        for name, leaves in (("xdata", jax.tree.leaves(x)), ("ydata", [y])):
            if not all(_is_finite(leaf) for leaf in leaves):
                raise ValueError(
                    f"`{name}` must not contain infs or NaNs. Remove them, or use "
                    "nan_policy='omit' to leave out points with NaN."
                )
    return Points(x, y, None if sigma is None else checked_sigma(sigma, y.size))


def _is_finite(leaf: Any) -> bool:
    return not isinstance(leaf, np.ndarray) or bool(np.isfinite(leaf).all())


def _independent(xdata: Any) -> PyTree:
    """`xdata` with its numbers in double precision; integers in a pytree stay."""
    if type(xdata) is np.ndarray and xdata.dtype == np.float64:
        return xdata
    refuse_tracers(xdata, "`xdata`")
    xdata = _one_array(xdata)

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, (str, bytes)):
            raise TypeError(f"`xdata` is {leaf!r}; expected numbers.")
        if not hasattr(leaf, "__array__"):
            return leaf
        values = _numbers(with_nan(leaf), is_whole=leaf is xdata)
        return np.ma.MaskedArray(values, leaf.mask) if is_masked(leaf) else values

    return jax.tree.map(convert, xdata, is_leaf=lambda leaf: hasattr(leaf, "__array__"))


def _numbers(leaf: Any, is_whole: bool) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind in "mM":
        return moments(array)
    if array.dtype.kind == "c":
        return np.asarray(array, np.complex128)
    if is_whole or array.dtype.kind in "fOUS":
        return real_array(leaf, "`xdata`")
    return native(array)


def _one_array(xdata: Any) -> Any:
    """A list or tuple as one array, as SciPy takes it, if it can be one."""
    if not isinstance(xdata, (list, tuple)) or hasattr(xdata, "_fields"):
        return xdata
    try:
        if any(map(is_masked, jax.tree.leaves(xdata))):
            return np.ma.stack(list(map(_one_array, xdata)))
        return np.asarray(xdata)
    except ValueError:  # of arrays that do not stack
        return xdata


def points_where(
    flag: Callable, leaves: Iterable, shape: tuple[int, ...], name: str = "x"
) -> np.ndarray:
    """Which points of a shape have a flag in any of some arrays over them.

    An array has the shape of the points, also behind leading axes, or broadcasts to it.
    """
    flagged = np.zeros(shape, bool)
    for leaf in leaves:
        flags = np.asarray(flag(leaf))
        if not flags.any():
            continue
        leading = flags.ndim - len(shape)
        if leading > 0 and flags.shape[leading:] == shape:
            flags = flags.any(axis=tuple(range(leading)))
        try:
            flagged |= flags
        except ValueError:
            raise ValueError(
                f"{name} has NaN, infinity or masked elements, and its shape "
                f"{leaf.shape} does not tell to which points of y, {shape}, they "
                "belong."
            ) from None
    return flagged


def _cut(
    x: PyTree, y: np.ndarray, sigma: np.ndarray | None, nan_policy: str | None
) -> Points:
    """Leave out points that are masked and, if asked, those with NaN."""
    m = y.size
    leaves, structure = jax.tree.flatten(x)
    if nan_policy is None and not any(map(is_masked, (y, sigma, *leaves))):
        return Points(x, y, sigma)
    flat = [
        _flat_points(leaf, y.shape) if isinstance(leaf, np.ndarray) else leaf
        for leaf in leaves
    ]
    arrays = [y.ravel(), *(leaf for leaf in flat if isinstance(leaf, np.ndarray))]
    missing = points_where(np.ma.getmask, filter(is_masked, arrays), (m,), "`xdata`")
    if is_masked(sigma):
        errors = sigma.diagonal() if sigma.shape == (m, m) else sigma
        missing |= points_where(np.ma.getmask, [errors], (m,), "`sigma`")
    if nan_policy is not None:
        has_nan = points_where(_is_nan, arrays, (m,), "`xdata`") & ~missing
        if nan_policy == "raise" and has_nan.any():
            raise ValueError("The input contains nan values")
        missing |= has_nan
    if not missing.any():
        return Points(x, y, sigma)
    kept = ~missing
    if not kept.any():
        raise ValueError("`ydata` must not be empty! Every point is nan or masked.")
    return only_points(Points(jax.tree.unflatten(structure, flat), y, sigma), kept)


def only_points(data: Points, kept: np.ndarray) -> Points:
    """The points that are kept, of y in one row and of what has its length.

    Args:
        kept: a mask, flat.
    """
    m, sigma = kept.size, data.sigma
    if sigma is not None and sigma.shape == (m,):
        sigma = sigma[kept]
    elif sigma is not None and sigma.shape == (m, m):
        sigma = sigma[np.ix_(kept, kept)]

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        return np.ma.getdata(leaf[..., kept] if leaf.shape[-1:] == (m,) else leaf)

    y = np.ma.getdata(data.y.ravel()[kept])
    return Points(jax.tree.map(cut, data.x), y, sigma)


def _is_nan(leaf: np.ndarray) -> Any:
    return np.isnan(np.ma.getdata(leaf)) if leaf.dtype.kind in "fc" else False


def _flat_points(leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array over the points with them as one last axis."""
    if len(shape) > 1 and leaf.shape[-len(shape) :] == shape:
        return leaf.reshape(*leaf.shape[: -len(shape)], -1)
    return leaf


def checked_sigma(sigma: np.ndarray, m: int) -> np.ndarray:
    """Standard errors, or the Cholesky factor of a covariance matrix."""
    sigma = real_array(sigma, "`sigma`")
    if not np.isfinite(sigma).all():
        raise ValueError(
            "`sigma` must be finite. Leave points out instead of giving them an "
            "infinite error."
        )
    if sigma.ndim == 0 or sigma.shape == (m,):
        if not (sigma > 0).all():
            raise ValueError(
                f"`sigma` must be positive; its smallest value is {sigma.min():g}."
            )
        return sigma
    if sigma.shape != (m, m):
        raise ValueError(
            f"`sigma` has incorrect shape {sigma.shape}; expected a number, ({m},) or "
            f"({m}, {m})."
        )
    size = np.sqrt(np.abs(sigma.diagonal()))
    if (np.abs(sigma - sigma.T) > ASYMMETRY * size * size[:, None]).any():
        raise ValueError("`sigma` is a matrix and not symmetric; give a covariance.")
    try:
        return np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError as error:
        raise ValueError("`sigma` must be positive definite.") from error


def in_units_of(sigma: Any, rows: jax.Array) -> jax.Array:
    """Rows over their standard errors, or L⁻¹ rows for a covariance L Lᵀ."""
    if sigma is None:
        return rows
    if sigma.ndim == 2:
        return jax.scipy.linalg.solve_triangular(sigma, rows, lower=True)
    return rows / jnp.reshape(sigma, (-1,) + (1,) * (rows.ndim - 1))


class Judged(NamedTuple):
    """Observations with a likelihood in the place of sigma, and the loss."""

    data: Points
    loss: Any


def judged(data: Points, loss: Any, number: int) -> Judged:
    """The observations as the loss wants them.

    Args:
        number: of observations, without padding.
    """
    if not isinstance(loss, Likelihood):
        return Judged(data, loss)
    name = type(loss).__name__
    if data.sigma is not None:
        raise ValueError(
            f"loss={name}(...) knows the errors of `ydata`; leave out `sigma`."
        )
    own = RowNumbers.of(loss)
    leaves, structure = jax.tree.flatten(loss)
    numbers = [np.asarray(leaf, float).ravel() for leaf in leaves]
    for leaf in numbers:
        if leaf.size not in (1, number):
            raise ValueError(
                f"loss={name}(...) has {leaf.size} numbers, and {number} points of "
                "`ydata` are left to fit. Give one number, or one for each point that "
                "is left."
            )
    wrong = jax.tree.unflatten(structure, numbers).problem_with(data.y.ravel()[:number])
    if wrong is not None:
        raise ValueError(f"`ydata` does not go with its likelihood. {wrong}")
    if own is None:
        return Judged(data._replace(sigma=loss), loss)
    numbers = [
        padded_points(leaf, (number,), data.y.size) if leaf.size > 1 else leaf[0]
        for leaf in numbers
    ]
    return Judged(data._replace(sigma=jax.tree.unflatten(structure, numbers)), own.loss)


def padded(data: Points) -> tuple[Points, np.ndarray]:
    """Points of a length that many lengths share, and weights of 1 and 0.

    The last point is repeated with weight zero.
    """
    m = data.y.size
    length = bucket(m)
    sigma = data.sigma
    if sigma is not None and sigma.ndim == 1:
        sigma = padded_points(sigma, (m,), length)
    elif sigma is not None and sigma.ndim == 2:
        sigma = np.pad(sigma, (0, length - m))
        sigma[range(m, length), range(m, length)] = 1
    weights = np.zeros(length)
    weights[:m] = 1
    x = padded_points(data.x, data.y.shape, length)
    return Points(x, padded_points(data.y.ravel(), (m,), length), sigma), weights


def padded_points(tree: PyTree, shape: tuple[int, ...], length: int) -> PyTree:
    """Arrays over points of a shape with so many of them as one axis.

    That is the last, or else the first. The last point is repeated.
    """
    m = math.prod(shape)

    def pad(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray) or leaf.ndim == 0:
            return leaf
        trailing = zip(leaf.shape[::-1], shape[::-1], strict=False)
        if leaf.ndim <= len(shape) and all(own in (1, size) for own, size in trailing):
            leaf = np.broadcast_to(leaf, shape)
        leaf = _flat_points(leaf, shape)
        for axis in (-1, 0):
            if leaf.shape[axis] == m:
                last = leaf[..., -1:] if axis else leaf[-1:]
                return np.concatenate([leaf, np.repeat(last, length - m, axis)], axis)
        raise ValueError(
            f"rowwise=True, but the coordinates of shape {leaf.shape} have no axis of "
            f"the {m} points. Bind what is not points to the model with "
            "functools.partial."
        )

    return jax.tree.map(pad, tree)


def bucket(m: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most half of it is padding."""
    power = max(16, 1 << (m - 1).bit_length())
    return power * 3 // 4 if m <= power * 3 // 4 and power > 16 else power
