"""The observations of `curve_fit`: checked, cut, and padded to common lengths."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._arguments import real_array, refuse_tracers


class Data(NamedTuple):
    """What the residuals need."""

    x: PyTree
    y: np.ndarray  # as given
    sigma: np.ndarray | None  # a number, (m,), or the Cholesky factor (m, m)


def prepare(xdata, ydata, sigma, check_finite, nan_policy) -> Data:
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
    y = real_array(ydata, "`ydata`")
    x = _independent(xdata)
    if y.size == 0:
        raise ValueError("`ydata` must not be empty!")
    if check_finite:
        for name, leaves in (("xdata", jax.tree.leaves(x)), ("ydata", [y])):
            if not all(_is_finite(leaf) for leaf in leaves):
                raise ValueError(
                    f"`{name}` must not contain infs or NaNs. Remove them, or use "
                    "nan_policy='omit' to leave out points with NaN."
                )
    if sigma is not None:
        sigma = real_array(sigma, "`sigma`")
        if sigma.size == 1 and y.size != 1:
            sigma = sigma.reshape(())
        elif sigma.shape == y.shape:
            sigma = sigma.ravel()
    if nan_policy is not None and not check_finite:
        x, y, sigma = _without_nan(x, y, sigma, nan_policy)
    return Data(x, y, None if sigma is None else _checked_sigma(sigma, y.size))


def _is_finite(leaf) -> bool:
    return not isinstance(leaf, np.ndarray) or bool(np.isfinite(leaf).all())


def _independent(xdata: Any) -> PyTree:
    """`xdata` with its numbers in double precision; integers in a pytree stay."""
    if isinstance(xdata, np.ndarray) or _is_numeric_list(xdata):
        if np.iscomplexobj(xdata):
            return np.asarray(xdata, np.complex128)
        return real_array(xdata, "`xdata`")
    refuse_tracers(xdata, "`xdata`")

    def convert(leaf):
        if isinstance(leaf, (str, bytes)):
            raise TypeError(f"`xdata` is {leaf!r}; expected numbers.")
        if not hasattr(leaf, "__array__"):
            return leaf
        array = np.asarray(leaf)
        if leaf is xdata or array.dtype.kind in "fOUS":
            return _independent(array)
        return array

    return jax.tree.map(convert, xdata, is_leaf=lambda leaf: hasattr(leaf, "__array__"))


def _is_numeric_list(xdata) -> bool:
    """Whether a list or tuple is one array, as SciPy takes it."""
    if not isinstance(xdata, (list, tuple)) or hasattr(xdata, "_fields"):
        return False
    try:
        np.asarray(xdata)
    except ValueError:  # of arrays that do not stack
        return False
    return True


def _without_nan(x, y, sigma, nan_policy):
    """Leave out points with NaN, or refuse them."""
    m = y.size
    missing = np.isnan(y).ravel()
    leaves, structure = jax.tree.flatten(x)
    flat = [
        _flat_points(leaf, y.shape) if isinstance(leaf, np.ndarray) else leaf
        for leaf in leaves
    ]
    for leaf in flat:
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "fc":
            continue
        has_nan = np.isnan(leaf)
        if not has_nan.any():
            continue
        if leaf.ndim == 0 or leaf.shape[-1] != m:
            raise ValueError(
                f"`xdata` of shape {leaf.shape} contains nan, and its last axis is not "
                f"that of the {m} points; it cannot be cut."
            )
        missing = missing | has_nan.any(axis=tuple(range(leaf.ndim - 1)))
    if not missing.any():
        return x, y, sigma
    if nan_policy == "raise":
        raise ValueError("The input contains nan values")
    kept = ~missing
    if not kept.any():
        raise ValueError("`ydata` must not be empty! Every point contains nan.")
    if sigma is not None and sigma.shape == (m,):
        sigma = sigma[kept]
    elif sigma is not None and sigma.shape == (m, m):
        sigma = sigma[np.ix_(kept, kept)]
    cut = [
        leaf[..., kept]
        if isinstance(leaf, np.ndarray) and leaf.shape[-1:] == (m,)
        else leaf
        for leaf in flat
    ]
    return jax.tree.unflatten(structure, cut), y.ravel()[kept], sigma


def _flat_points(leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array over the points with them as one last axis."""
    if len(shape) > 1 and leaf.shape[-len(shape) :] == shape:
        return leaf.reshape(*leaf.shape[: -len(shape)], -1)
    return leaf


def _checked_sigma(sigma: np.ndarray, m: int) -> np.ndarray:
    """Standard errors, or the Cholesky factor of a covariance matrix."""
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
    if not np.allclose(sigma, sigma.T, rtol=1e-8, atol=0):
        raise ValueError("`sigma` is a matrix and not symmetric; give a covariance.")
    try:
        return np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError as error:
        raise ValueError("`sigma` must be positive definite.") from error


def padded(data: Data) -> tuple[Data, np.ndarray]:
    """Data of a length that many lengths share, and weights of 1 and 0.

    The last point is repeated with weight zero.
    """
    m = data.y.size
    extra = _bucket(m) - m

    def pad(leaf):
        if not isinstance(leaf, np.ndarray) or leaf.ndim == 0:
            return leaf
        leaf = _flat_points(leaf, data.y.shape)
        if leaf.shape[-1] == m:
            return np.concatenate([leaf, np.repeat(leaf[..., -1:], extra, -1)], -1)
        if leaf.shape[0] == m:
            return np.concatenate([leaf, np.repeat(leaf[-1:], extra, 0)])
        raise ValueError(
            f"rowwise=True, but `xdata` of shape {leaf.shape} has no axis of the {m} "
            "points. Bind what is not points to the model with functools.partial."
        )

    sigma = data.sigma
    if sigma is not None and sigma.ndim == 1:
        sigma = pad(sigma)
    elif sigma is not None and sigma.ndim == 2:
        sigma = np.pad(sigma, (0, extra))
        sigma[range(m, m + extra), range(m, m + extra)] = 1
    weights = np.zeros(m + extra)
    weights[:m] = 1
    return Data(jax.tree.map(pad, data.x), pad(data.y.ravel()), sigma), weights


def _bucket(m: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most half of it is padding."""
    power = max(16, 1 << (m - 1).bit_length())
    return power * 3 // 4 if m <= power * 3 // 4 and power > 16 else power
