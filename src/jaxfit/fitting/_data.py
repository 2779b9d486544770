"""The user's x, y and sigma, checked."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit.fitting._problem import Data, Problem


class Observed(NamedTuple):
    """Data and which of their points count."""

    data: Data
    valid: np.ndarray | None  # of the shape of y; None: all

    @property
    def sigma(self) -> np.ndarray | None:
        """Of the shape of y."""
        sigma = self.data.sigma
        return None if sigma is None else np.broadcast_to(sigma, np.shape(self.data.y))

    def counted(self, *arrays: Any) -> list[Any]:
        """The points that count of some arrays, flat."""
        keep = slice(None) if self.valid is None else self.valid.ravel()
        return [None if a is None else np.ravel(a)[keep] for a in arrays]

    def check_enough(self, problem: Problem) -> None:
        """Refuse data without a point."""
        points = self.data.y.size if self.valid is None else int(self.valid.sum())
        if points == 0:
            raise ValueError(
                "No point is left to fit: y is empty, or all its points are NaN or "
                "have an infinite sigma."
            )


def observed(x: PyTree, y: Any, sigma: Any, nan_policy: str) -> Observed:
    """x, y and sigma in float64, and which points count."""
    if nan_policy not in ("raise", "omit"):
        raise ValueError(f"nan_policy is {nan_policy!r}; give 'raise' or 'omit'.")
    y = real("y", y)
    x = jax.tree.map(lambda leaf: real("x", leaf), x)
    valid = np.isfinite(y)
    if np.isinf(y).any():
        raise ValueError(f"y has {int(np.isinf(y).sum())} infinite values.")
    for leaf in jax.tree.leaves(x):
        valid = valid & finite_points(leaf, y.shape)
    if nan_policy == "raise" and not valid.all():
        raise ValueError(
            f"{int((~valid).sum())} of {valid.size} points have NaN in x or y. Say "
            "nan_policy='omit' to leave them out."
        )
    sigma, counts = checked_sigma(sigma, y.shape)
    if counts is not None:
        valid = valid & counts
    return Observed(Data(x, y, sigma), None if valid.all() else valid)


def real(what: str, value: Any) -> np.ndarray:
    """Real numbers in float64."""
    array = np.asarray(value)
    if array.dtype.kind not in "iufb":
        raise TypeError(
            f"{what} has the dtype {array.dtype}; give real numbers. Complex data are "
            "fitted by jaxfit.solve."
        )
    return array.astype(float, copy=False)


def finite_points(leaf: np.ndarray, shape: tuple) -> np.ndarray:
    """The points at which a coordinate is finite; True if it has another shape."""
    finite = np.asarray(np.isfinite(leaf))
    if leaf.shape[1:] == shape and leaf.shape != shape:
        return np.asarray(finite.all(axis=0))
    try:
        return np.asarray(np.broadcast_to(finite, shape))
    except ValueError:
        if not finite.all():
            raise ValueError(
                f"x has NaN or infinity, and its shape {leaf.shape} does not tell to "
                f"which points of y {shape} they belong."
            ) from None
        return np.ones(shape, bool)


def checked_sigma(sigma: Any, shape: tuple):
    """Standard errors, and which of them are finite (None: all)."""
    if sigma is None:
        return None, None
    sigma = real("sigma", sigma)
    if not np.all(sigma > 0):
        raise ValueError(
            f"sigma has {int((~(sigma > 0)).sum())} values that are not positive. Give "
            "standard errors; an infinite one leaves its point out."
        )
    try:
        np.broadcast_to(sigma, shape)
    except ValueError as error:
        raise ValueError(
            f"sigma has the shape {sigma.shape}, which does not broadcast to that of "
            f"y, {shape}."
        ) from error
    finite = np.isfinite(sigma)
    if finite.all():
        return sigma, None
    return np.where(finite, sigma, 1.0), np.broadcast_to(finite, shape)
