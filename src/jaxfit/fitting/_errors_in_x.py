"""Standard errors of the coordinates, as people give them: checked, one for each point.

What is asked for beside them, and does not go with them, is refused here.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxfit._programs.arrays import is_masked
from jaxfit._rows.linearization import Kind
from jaxfit._rows.predictions import kind_of
from jaxfit._scipy.arguments import real_points
from jaxfit.fitting._dates import Dates, spans_as_numbers
from jaxfit.fitting._points import Observed
from jaxfit.fitting._problem import Method

Shape = tuple[int, ...]
OfLeaves = tuple[Any, ...]  # in the order of the leaves of x; None: exact


def with_errors_in_x(
    seen: Observed, sigma_x: Any, points: Shape | None = None
) -> Observed:
    """The points with the errors of their x; without where all of these are zero.

    Args:
        sigma_x: one number, the shape of x, or for several coordinates one of these for
            each; None or 0 where x is exact. Infinite or masked: the point is left out.
        points: the shape of one data set, where y has many; None: that of y.
    """
    if sigma_x is None:
        return seen
    _check_goes_with(seen)
    points = np.shape(seen.data.y) if points is None else points
    coordinates = jax.tree.leaves(seen.data.x)
    given = _of_leaves(seen.data.x, sigma_x)
    errors = [
        None if one is None else _checked(_numbers(one, seen.dates), leaf, points)
        for one, leaf in zip(given, coordinates, strict=True)
    ]
    valid = np.ones(np.shape(seen.data.y), bool) if seen.valid is None else seen.valid
    for error in errors:
        if error is None:
            continue
        wrong = ~(error >= 0) & np.any(valid.reshape(-1, *points), axis=0)
        if wrong.any():
            raise ValueError(
                f"sigma_x has {int(wrong.sum())} values that are negative or NaN. Give "
                "standard errors of x: 0 where x is exact, infinite to leave a point "
                "out."
            )
        is_finite = np.isfinite(error).reshape(-1, *points).all(axis=0)
        valid = valid & is_finite
    kept = tuple(
        np.where(error < np.inf, error, 0.0)
        if error is not None and np.any(error > 0)
        else None
        for error in errors
    )
    seen = seen._replace(valid=None if valid.all() else valid)
    is_exact = all(error is None for error in kept)
    return seen if is_exact else seen._replace(sigma_x=kept)


def check_method_with_errors(seen: Observed, method: Method) -> None:
    """Refuse a loss, and errors of another kind, next to errors in x."""
    if seen.sigma_x is None:
        return
    if kind_of(method.loss) is not Kind.SQUARES:
        raise ValueError(
            f"sigma_x goes with least squares, and loss is {method.loss!r}. A loss is "
            "that of single residuals, and the distance of a point from the curve has "
            "two, along y and along x: it is not clear which of them an outlier has. "
            "Leave out the loss, or give outliers larger errors."
        )
    if method.is_of_rows:
        kind = method.covariance.value
        raise ValueError(
            f"covariance={kind!r} is made of single residuals, and with sigma_x each "
            "point has several. Leave it out: the errors are those of the Gram matrix."
        )


def check_not_shared(seen: Observed, shared: tuple[str, ...]) -> None:
    """Refuse parameters that curves share."""
    if shared and seen.sigma_x is not None:
        raise ValueError(
            f"shared={shared!r} and sigma_x are given. Errors in x are those of curves "
            "fitted each by itself: leave one of the two out."
        )


def check_unwatched(seen: Observed, is_watched: bool, is_on_host: bool) -> None:
    """Refuse fits of one step at a time, which are none with errors in x."""
    if seen.sigma_x is None:
        return
    if is_watched:
        raise ValueError(
            "callback and time_limit watch the steps of an ordinary fit, and sigma_x "
            "asks for one that has a fit of its own in every point. Leave out one or "
            "the other."
        )
    if is_on_host:
        raise ValueError(
            "sigma_x needs a model that can be compiled, since its derivative by x "
            "enters at every point, and NumPy has to compute this one (the warning "
            "HostModelWarning says why). Write it in jax.numpy, or leave out sigma_x."
        )


def _check_goes_with(seen: Observed) -> None:
    """Refuse data that errors in x do not go with."""
    if seen.data.sigma is None:
        raise ValueError(
            "sigma_x is given without sigma. The ratio of the two says how far a point "
            "may move along x and how far along y: give sigma, the standard errors of "
            "y, too."
        )
    if seen.is_correlated:
        raise ValueError(
            "sigma_x goes with standard errors of y, and sigma is a covariance matrix. "
            "Give the roots of its diagonal, if that is what the points are."
        )
    if seen.is_complex:
        raise ValueError(
            "sigma_x goes with real y, and y is complex. Leave out sigma_x, or fit the "
            "real or the imaginary part by itself."
        )
    if seen.shapes is not None:
        raise ValueError(
            "sigma_x goes with one data set, and there are several. Fit each by itself."
        )


def _of_leaves(x: PyTree, sigma_x: Any) -> list[Any]:
    """What is given for each coordinate."""
    leaves, structure = jax.tree.flatten(x)
    if jax.tree_util.treedef_is_leaf(structure):
        return [sigma_x]
    is_number = not isinstance(sigma_x, (tuple, list, dict)) and not np.ndim(sigma_x)
    if is_number:
        return [sigma_x] * len(leaves)
    if isinstance(sigma_x, (tuple, list)) and isinstance(x, (tuple, list)):
        sigma_x = type(x)(sigma_x)
    try:
        return structure.flatten_up_to(sigma_x)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"x has {len(leaves)} coordinates, and sigma_x is no number and no "
            f"{type(x).__name__} of as many. Give one for each, None or 0 for one that "
            "is exact."
        ) from error


def _numbers(error: Any, dates: Dates | None) -> Float[np.ndarray, "..."]:
    """Standard errors as numbers, in the unit of x; infinite where masked."""
    spans = spans_as_numbers(error, dates, "sigma_x")
    values = real_points(error if spans is None else spans, "sigma_x")
    if is_masked(values):
        values = np.ma.filled(values, np.inf)
    return np.asarray(values)


def _checked(
    error: Float[np.ndarray, "..."], leaf: Any, points: Shape
) -> Float[np.ndarray, "..."]:
    """One standard error for each number of a coordinate, points last."""
    shape = np.shape(leaf)
    leading = shape[: max(len(shape) - len(points), 0)]
    whole = *leading, *points
    try:
        np.broadcast_to(leaf, whole)
    except ValueError as problem:
        raise ValueError(
            f"sigma_x goes with coordinates whose last dimensions are those of y, "
            f"{points}; one has the shape {shape}."
        ) from problem
    try:
        return np.broadcast_to(error, whole).astype(float)
    except ValueError as problem:
        raise ValueError(
            f"sigma_x has the shape {error.shape}, which does not broadcast to that of "
            f"its coordinate, {whole}. Give one number, or one for each point."
        ) from problem
