"""The user's x, y and sigma, checked, for one data set or many."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._programs.arrays import is_masked
from jaxfit._scipy.arguments import coordinates, real_points
from jaxfit._scipy.observations import Points, points_where
from jaxfit.fitting._problem import Problem


class Observed(NamedTuple):
    """Points and which of their points count."""

    data: Points
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
                "No point is left to fit: y is empty, or all its points are NaN, are "
                "masked or have an infinite sigma."
            )


def observed(
    x: PyTree,
    y: Any,
    sigma: Any,
    nan_policy: str,
    points: tuple[int, ...] | None = None,
) -> Observed:
    """x, y and sigma in float64, and which points count.

    Args:
        points: the shape of one data set, where y has many behind leading axes that all
            have the same x; None: that of y.
    """
    if nan_policy not in ("raise", "omit"):
        raise ValueError(f"nan_policy is {nan_policy!r}; give 'raise' or 'omit'.")
    y, x = real_points(y, "y"), coordinates(x)
    leaves, shape = jax.tree.leaves(x), y.shape if points is None else points
    if sigma is not None:
        sigma = _over_points(sigma, y.shape)
    masked: Any = False
    if any(map(is_masked, (y, sigma, *leaves))):
        masked = points_where(np.ma.getmask, filter(is_masked, leaves), shape)
        for array in filter(is_masked, (y, sigma)):
            masked = masked | array.mask
        x, y, sigma = jax.tree.map(np.ma.getdata, (x, y, sigma))
        leaves = jax.tree.leaves(x)
    lost = np.isnan(y) | points_where(_is_not_finite, leaves, shape)
    valid = ~(lost | masked)
    if nan_policy == "raise" and (number := int(np.sum(~(valid | masked)))):
        raise ValueError(
            f"{number} of {lost.size} points have NaN in x or y. Say "
            "nan_policy='omit' to leave them out."
        )
    if sigma is not None:
        sigma, valid = _standard_errors(sigma, valid)
    if (infinite := np.isinf(y) & valid).any():
        raise ValueError(f"y has {int(infinite.sum())} infinite values.")
    return Observed(Points(x, y, sigma), None if valid.all() else valid)


def _is_not_finite(leaf: np.ndarray) -> np.ndarray:
    return ~np.isfinite(leaf)


def _over_points(sigma: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that broadcast to the shape of y."""
    sigma = real_points(sigma, "sigma")
    try:
        np.broadcast_to(sigma, shape)
    except ValueError as error:
        raise ValueError(
            f"sigma has the shape {sigma.shape}, which does not broadcast to that of "
            f"y, {shape}."
        ) from error
    return sigma


def _standard_errors(sigma: np.ndarray, valid: np.ndarray):
    """Standard errors, infinite where there is none, and the points that count."""
    wrong = ~(sigma > 0) & valid
    if wrong.any():
        raise ValueError(
            f"sigma has {int(wrong.sum())} values that are not positive. Give "
            "standard errors; an infinite one leaves its point out."
        )
    sigma = np.where(sigma > 0, sigma, np.inf)
    return sigma, valid & np.isfinite(sigma)
