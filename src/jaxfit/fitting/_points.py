"""Points and which of them count: of the user's x, y and sigma, and of data sets."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree

from jaxfit._programs.arrays import is_masked
from jaxfit._scipy.arguments import complex_points, coordinates, real_points
from jaxfit._scipy.observations import (
    Points,
    checked_sigma,
    only_points,
    points_where,
)
from jaxfit.fitting._dates import Dated, Dates
from jaxfit.losses import Likelihood


class Observed(NamedTuple):
    """Points and which of their points count."""

    data: Points  # with sigma the Cholesky factor of a covariance, if it has one
    valid: Bool[np.ndarray, "..."] | None  # of the shape of y; None: all
    is_complex: bool = False  # the last axis of y is the real and the imaginary part
    dates: Dates | None = None  # what x counts
    shapes: tuple[tuple[int, ...], ...] | None = None  # of several data sets
    sigma_x: tuple | None = None  # errors of the leaves of x, None where one is exact
    # of y, `data.sigma` being its number for each point, if it has one
    likelihood: Likelihood | None = None

    @property
    def y(self) -> np.ndarray:
        """y as the user has it."""
        return self.shown(self.data.y)

    def shown(self, values: Any) -> Any:
        """Values of the shape of the data as the user has them: complex, or a list."""
        if self.shapes is not None:
            return parted(values, self.shapes)
        return values[..., 0] + 1j * values[..., 1] if self.is_complex else values

    def split(self, values: Any) -> Any:
        """`shown` undone."""
        if self.shapes is not None:
            return np.concatenate([np.ravel(part) for part in values])
        return np.stack([values.real, values.imag], -1) if self.is_complex else values

    def of_each(self, values: Any) -> Any:
        """What there is one of for each point, for each number of y."""
        if not self.is_complex or not np.ndim(values):
            return values
        return np.repeat(values[..., None], 2, axis=-1)

    def of_points(self, values: Any) -> Any:
        """`of_each` undone."""
        return values[..., 0] if self.is_complex and np.ndim(values) else values

    @property
    def constants(self) -> list[np.ndarray]:
        """What a constant is among the numbers of y: a complex one has two parts."""
        shape = np.shape(self.data.y)
        if not self.is_complex:
            return [np.ones(shape)]
        return [np.broadcast_to(part, shape) for part in np.eye(2)]

    @property
    def is_correlated(self) -> bool:
        """Whether the covariance of y is given, and not its errors alone."""
        sigma = self.data.sigma
        return sigma is not None and np.ndim(sigma) > np.ndim(self.data.y)

    @property
    def sigma(self) -> Float[np.ndarray, "..."] | None:
        """The standard errors, of the shape of y."""
        sigma = self.data.sigma
        if self.is_correlated:
            return np.sqrt(np.sum(sigma**2, axis=1))
        if self.likelihood is not None:
            return None
        return None if sigma is None else np.broadcast_to(sigma, np.shape(self.data.y))

    @property
    def log_sigma(self) -> float:
        """The sum of the logarithms of sigma; half that of the covariance's det."""
        if self.is_correlated:
            return float(np.sum(np.log(self.data.sigma.diagonal())))
        return (
            0.0
            if self.sigma is None
            else float(np.sum(np.log(self.counted(self.sigma))))
        )

    @property
    def xlabel(self) -> str:
        """What stands below a picture."""
        return "x" if self.dates is None else self.dates.words

    @property
    def notes(self) -> list[str]:
        """What a reader of a report should know of the data, as sentences."""
        notes = [] if self.dates is None else [f"x: {self.dates.words}."]
        notes += ["Covariance of y given."] if self.is_correlated else []
        if self.likelihood is not None:
            notes.append(f"Likelihood of y: {type(self.likelihood).__name__}.")
        if self.is_complex:
            notes.append(
                "y is complex: its real and imaginary parts count by themselves."
            )
        return notes

    def standardized(self, values: Float[np.ndarray, "..."]) -> np.ndarray:
        """Values of the shape of y in units of sigma: uncorrelated, of variance 1."""
        sigma = self.data.sigma
        if self.is_correlated:
            import scipy.linalg

            return scipy.linalg.solve_triangular(sigma, values, lower=True)
        with np.errstate(invalid="ignore"):  # of points that do not count
            return values if sigma is None else values / sigma

    @property
    def errors_in_x(self) -> Float[np.ndarray, "k ..."]:
        """The errors of all coordinates that have some, one after the other."""
        errors = [error for error in self.sigma_x or () if error is not None]
        shape = np.shape(self.data.y)
        return np.concatenate([error.reshape(-1, *shape) for error in errors])

    def like_x(self, values: Float[np.ndarray, "k ..."]) -> PyTree:
        """Values of the shape of `errors_in_x` in the structure of x; else zero.

        NaN for points that do not count.
        """
        leaves, structure = jax.tree.flatten(self.data.x)
        shape, parts, start = np.shape(self.data.y), [], 0
        for leaf, error in zip(leaves, self.sigma_x or (), strict=True):
            if error is None:
                leading = np.shape(leaf)[: max(np.ndim(leaf) - len(shape), 0)]
                part = np.zeros((*leading, *shape))
            else:
                end = start + math.prod(error.shape[: error.ndim - len(shape)])
                part, start = values[start:end].reshape(error.shape), end
            parts.append(part if self.valid is None else _or_nan(self.valid, part))
        return jax.tree.unflatten(structure, parts)

    def scattered(self, noise: Float[np.ndarray, "number m"]) -> np.ndarray:
        """What independent noise of variance 1 becomes, of the points that count."""
        if self.is_correlated:
            return noise @ self.data.sigma.T
        return noise if self.sigma is None else noise * self.counted(self.sigma)

    def counted(self, values: Any) -> Any:
        """The points that count of an array, flat; None of None."""
        if values is None:
            return None
        flat = np.ravel(values)
        return flat if self.valid is None else flat[self.valid.ravel()]

    def spread(self, values: Any) -> np.ndarray:
        """`counted` undone: of the shape of y, NaN for points that do not count."""
        shape = np.shape(self.data.y)
        if self.valid is None:
            return np.reshape(values, shape)
        whole = np.full(shape, np.nan)
        whole[self.valid] = values
        return whole

    @property
    def data_set(self) -> "DataSet":
        """The points as a data set."""
        return DataSet(self.data, self.valid, sigma_x=self.sigma_x)

    def check_enough(self) -> None:
        """Refuse data without a point."""
        points = self.data.y.size if self.valid is None else int(self.valid.sum())
        if points == 0:
            raise ValueError(
                "No point is left to fit: y is empty, or all its points are NaN, are "
                "masked or have an infinite sigma."
            )


def _or_nan(valid: Bool[np.ndarray, "..."], values: np.ndarray) -> np.ndarray:
    return np.where(valid, values, np.nan)


def parted(values: Any, shapes: tuple[tuple[int, ...], ...]) -> list[Any]:
    """One vector as arrays of some shapes."""
    parts, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        parts.append(values[start:end].reshape(shape))
        start = end
    return parts


class DataSet(NamedTuple):
    """One data set: its points, which of them count, and where the fit starts.

    Of many data sets the arrays have a leading axis, see `Axes`.
    """

    data: Points
    valid: Any = None  # of the shape of y, or weights; None: all count
    starts: Any = None  # by name, of parameters that are not to be guessed
    bounds: Any = None  # (lower, upper) in place of the problem's
    sigma_x: tuple | None = None  # see `Observed`; as x the same for all


class Axes(NamedTuple):
    """The batch axes of what need not have one: 0, or None where all fits share it."""

    sigma: int | None = None
    valid: int | None = None
    bounds: int | None = None
    shared: bool = False  # one data set for all

    @classmethod
    def of(cls, data_sets: DataSet) -> "Axes":
        """The axes where everything has one."""
        return cls(
            sigma=None if data_sets.data.sigma is None else 0,
            valid=None if data_sets.valid is None else 0,
            bounds=None if data_sets.bounds is None else 0,
        )

    def shape(self, data_sets: DataSet) -> tuple[int, ...]:
        """The shape of the points of one data set."""
        shape = np.shape(data_sets.data.y)
        return shape if self.shared else shape[1:]

    def number(self, data_sets: DataSet) -> int:
        """The number of data sets."""
        if not self.shared:
            return len(data_sets.data.y)
        each = data_sets.starts, data_sets.valid if self.valid == 0 else None
        return len(jax.tree.leaves(each)[0])

    def nth(self, data_sets: DataSet, k: int) -> DataSet:
        """One of the data sets."""

        def part(axis: int | None, whole: PyTree) -> PyTree:
            return whole if axis is None else jax.tree.map(lambda leaf: leaf[k], whole)

        y_axis = None if self.shared else 0
        axes = DataSet(
            data=Points(x=None, y=y_axis, sigma=self.sigma),
            valid=self.valid,
            starts=0,
            bounds=self.bounds,
        )
        return jax.tree.map(part, axes, data_sets, is_leaf=lambda node: node is None)


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
    is_complex = np.iscomplexobj(y)
    y = complex_points(y) if is_complex else real_points(y, "y")
    x, dates = Dated.of(x)
    x = coordinates(x)
    leaves, shape = jax.tree.leaves(x), y.shape if points is None else points
    if sigma is not None:
        sigma = real_points(sigma, "sigma")
        if points is None and y.ndim == 1 and sigma.ndim == 2:
            if is_complex:
                raise ValueError(
                    f"sigma is a matrix {sigma.shape} and y is complex. Give the "
                    "standard errors of the parts, or real y: real and imaginary parts "
                    "one after the other, with their covariance."
                )
            return _correlated(Points(x, y, sigma), nan_policy)._replace(dates=dates)
        _check_over_points(sigma, y.shape)
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
        sigma = _standard_errors(sigma, valid)
        valid = valid & np.isfinite(sigma)
    if (infinite := np.isinf(y) & valid).any():
        raise ValueError(f"y has {int(infinite.sum())} infinite values.")
    seen = Observed(Points(x, y, sigma), None if valid.all() else valid, dates=dates)
    return _in_parts(seen) if is_complex else seen


def _in_parts(seen: Observed) -> Observed:
    """Complex points as real and imaginary parts along a last axis."""
    y, sigma, valid = seen.data.y, seen.data.sigma, seen.valid
    whole = seen._replace(is_complex=True)
    whole = whole._replace(data=seen.data._replace(y=whole.split(y)))
    sigma = whole.of_each(sigma)
    valid = None if valid is None else whole.of_each(valid)
    return whole._replace(data=whole.data._replace(sigma=sigma), valid=valid)


def _is_not_finite(leaf: np.ndarray) -> np.ndarray:
    return ~np.isfinite(leaf)


def _correlated(data: Points, nan_policy: str) -> Observed:
    """Points with their covariance, and none that does not count."""
    y, sigma = data.y, data.sigma
    if is_masked(sigma) and sigma.shape == (y.size, y.size):
        y = np.ma.MaskedArray(y, np.ma.getmaskarray(sigma).diagonal())
    seen = observed(data.x, y, None, nan_policy)
    whole = seen.data._replace(sigma=np.ma.getdata(sigma))
    if seen.valid is not None:
        whole = only_points(whole, seen.valid)
    factor = checked_sigma(whole.sigma, whole.y.size)
    return Observed(whole._replace(sigma=factor), None)


def _check_over_points(sigma: Float[np.ndarray, "..."], shape: tuple[int, ...]) -> None:
    """Refuse numbers that do not broadcast to the shape of y."""
    try:
        np.broadcast_to(sigma, shape)
    except ValueError as error:
        raise ValueError(
            f"sigma has the shape {sigma.shape}, which does not broadcast to that of "
            f"y, {shape}. A covariance matrix (m, m) is for `fit` and a y of shape "
            "(m,)."
        ) from error


def _standard_errors(
    sigma: Float[np.ndarray, "..."], valid: Bool[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Standard errors, infinite where there is none; refused where a point counts."""
    wrong = ~(sigma > 0) & valid
    if wrong.any():
        raise ValueError(
            f"sigma has {int(wrong.sum())} values that are not positive. Give "
            "standard errors; an infinite one leaves its point out."
        )
    return np.where(sigma > 0, sigma, np.inf)
