"""Which points are too far from the curve, for so many as there are.

Each residual is divided by its own standard deviation. With q the variance of the curve
at a point, in units of the variance of a point, and w the part of a point that the loss
leaves in the fit, that of the residual is 1 + (1 - 2w) q: 1 - q, with q the leverage,
where the point counts whole, and 1 + q where it does not count at all.

Where sigma is known the result is normal. Otherwise the scale is that of the other
points, as in externally studentised residuals (Cook and Weisberg, Residuals and
Influence in Regression, 1982, 2.2), which have Student's distribution. One outlier
would hide another there; so the scale is first that of the median residual, and then
that of all points within 3.5 of it, with the variance of a normal distribution that is
cut off there (one step of Rousseeuw and Leroy, Robust Regression and Outlier Detection,
1987, 1.3). In simulations of normal errors this keeps the level from 10 points on, and
finds the outliers of a line of 20 points with two of them twice as often.

The level is that of a false alarm among all m points: Šidák's 1 - (1 - level)^(1/m) for
each (J. Am. Stat. Assoc. 62, 1967).
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxfit._programs.host import computed
from jaxfit.fitting import _several
from jaxfit.fitting._batch_record import BatchRecord
from jaxfit.fitting._likelihood import judged_by
from jaxfit.fitting._points import DataSet
from jaxfit.fitting._record import Record
from jaxfit.fitting._run import rows_and_slopes
from jaxfit.fitting.inference import _bands
from jaxfit.fitting.inference._statistics import check_level
from jaxfit.losses import Likelihood, Loss

MAD = 1.4826  # from the median of the size of normal numbers to their deviation
CUT = 3.5  # such deviations, beyond which a point says nothing of the scale
WITHIN = 0.99389  # the variance of normal numbers within
FEW = 8  # degrees of freedom, below which all points say something
EXACT = 1e-8  # the variance of a residual that is zero but for rounding
ROUNDING = 16 * np.finfo(float).eps  # relative to y: no residual is less

Rows = Float[np.ndarray, "N m"]
Flags = Bool[np.ndarray, "N m"]


class Tested(NamedTuple):
    """Points of many fits, in units of sigma."""

    residual: Rows  # NaN: does not count
    y: Rows
    curve: Rows  # the variance of the curve
    variance: Float[np.ndarray, " N"] | None  # of a point, in it; None: as it scatters
    parameters: int  # that varied
    is_known: bool  # sigma is that of a point

    @property
    def counts(self) -> Flags:
        """Which points count."""
        return np.isfinite(self.residual)

    @property
    def number(self) -> Float[np.ndarray, "N 1"]:
        """How many do."""
        return np.sum(self.counts, axis=1, keepdims=True, dtype=float)


def outliers(record: Record, level: float) -> Any:
    """The mask of one fit, see `Fit.outliers`."""
    check_level(level)
    if not record.absolute_sigma and record.dof <= 0:
        raise ValueError(
            "No degree of freedom is left: the curve goes through all points, and none "
            "is an outlier. Give sigma and absolute_sigma=True, or more points."
        )
    seen, method, n = record.observed, record.method, len(record.varied)
    variance = 1.0 if record.absolute_sigma else record.reduced_chi_square
    is_judged = record.is_judged
    tested = Tested(
        residual=_row(
            seen.split(record.deviance_residuals) if is_judged else record.distances
        ),
        y=_row(seen.data.y if is_judged else seen.standardized(seen.data.y)),
        curve=_row(_curve(record)),
        variance=np.array([variance]) if is_judged or not method.is_sandwich else None,
        parameters=n,
        is_known=record.absolute_sigma,
    )
    if seen.is_correlated:
        tested = _given_others(record, tested, variance)
    loss = method.loss if isinstance(method.loss, Loss) else None
    mask = found(tested, loss, level).reshape(np.shape(seen.data.y))
    return mask.any(axis=-1) if seen.is_complex else seen.shown(mask)


def batch_outliers(record: BatchRecord, level: float) -> Bool[np.ndarray, "..."]:
    """The masks of many fits, see `BatchFit.outliers`."""
    check_level(level)
    settings, y = record.settings, record.y
    if settings["sigma_x"] is not None:
        raise ValueError(
            "These fits have errors in x, and a batch does not keep how points move. "
            "Ask one of them: fits.fit(index).outliers()."
        )
    is_complex, sigma = np.iscomplexobj(y), settings["sigma"]
    curves = _bands.curves_with_errors(record)
    loss = settings["loss"]
    if isinstance(loss, Likelihood):
        return _batch_of_likelihood(record, loss, curves, level)
    if is_complex:
        y = np.stack([np.real(y), np.imag(y)], axis=-1)
        sigma = sigma[..., None] if np.ndim(sigma) else sigma
    shape, number = y.shape, math.prod(record.shape)
    sigma = np.broadcast_to(1.0 if sigma is None else sigma, shape)
    is_sandwich = settings["covariance"] == "sandwich" or (
        settings["covariance"] is None and settings["loss"] is not None
    )
    is_known = bool(settings["absolute_sigma"])
    reduced = np.broadcast_to(record.reduced_chi_square, record.shape).reshape(number)
    with np.errstate(invalid="ignore", divide="ignore"):

        def of_each(values: np.ndarray) -> Rows:
            scaled = np.where(np.isfinite(sigma), values.reshape(shape) / sigma, np.nan)
            return scaled.reshape(number, -1)

        tested = Tested(
            residual=of_each(y - curves.value.reshape(shape)),
            y=of_each(y),
            curve=of_each(curves.stderr) ** 2,
            variance=None if is_sandwich else np.ones(number) if is_known else reduced,
            parameters=len(record.problem.varied),
            is_known=is_known,
        )
    mask = found(tested, settings["loss"], level).reshape(shape)
    mask &= record.success.reshape(*record.shape, *[1] * (y.ndim - len(record.shape)))
    return mask.any(axis=-1) if is_complex else mask


def _batch_of_likelihood(
    record: BatchRecord, loss: Likelihood, curves: Any, level: float
) -> Flags:
    """`batch_outliers` by the roots of deviances."""
    y, number = record.y, math.prod(record.shape)
    means = curves.value.reshape(y.shape)
    judged = judged_by(loss, means, np.where(np.isfinite(y), y, means))
    residual = np.where(np.isfinite(y), judged.near_normal(loss, y), np.nan)
    variance = np.broadcast_to(judged.variance, y.shape)
    stderr = curves.stderr.reshape(y.shape)
    tested = Tested(
        residual=residual.reshape(number, -1),
        y=y.reshape(number, -1),
        curve=_relative(stderr, np.sqrt(variance)).reshape(number, -1) ** 2,
        variance=np.ones(number),
        parameters=len(record.problem.varied),
        is_known=True,
    )
    mask = found(tested, None, level).reshape(y.shape)
    return mask & record.success.reshape(
        *record.shape, *[1] * (y.ndim - len(record.shape))
    )


# One row of points for each fit


def _row(values: Any) -> Rows:
    return np.asarray(values, float).reshape(1, -1)


def _curve(record: Record) -> Float[np.ndarray, " m"]:
    """The variance of the curve at the points, in units of sigma²."""
    parts = []
    for one in _several.views(record):
        stderr = _bands.errors_at_data(one)
        sigma = one.observed.sigma
        if one.is_judged:
            sigma = one.observed.spread(np.sqrt(one.judged.variance))
        parts.append(_relative(stderr, sigma).ravel() ** 2)
    return np.concatenate(parts)


def _relative(
    stderr: Float[np.ndarray, "..."], sigma: Float[np.ndarray, "..."] | None
) -> Float[np.ndarray, "..."]:
    """Errors in units of others; zero of what does not vary."""
    if sigma is None:
        return stderr
    return np.where(sigma > 0, stderr / np.where(sigma > 0, sigma, 1), 0)


def _given_others(record: Record, tested: Tested, variance: float) -> Tested:
    """Points with a covariance, each beside what the others say of it.

    With C = L Lᵀ and u the residuals L⁻¹ (y - model), those are C⁻¹ (y - model) = L⁻ᵀ u
    over the roots of the diagonal of C⁻¹ (Haslett and Haslett, Int. Stat. Rev. 75,
    2007).
    """
    data_set = DataSet(record.observed.data)
    end, factor = record.numbers.at_solver, record.observed.data.sigma
    rows = computed(rows_and_slopes, record.problem, data_set, end.x)
    inverse = np.linalg.inv(factor).T
    size = np.sum(inverse**2, axis=1)
    slopes = inverse @ rows[1]
    known = np.where(np.isfinite(end.covariance), end.covariance, 0)
    return tested._replace(
        residual=_row(inverse @ tested.residual[0] / np.sqrt(size)),
        curve=_row(np.einsum("ij,jk,ik->i", slopes, known, slopes) / size),
        variance=np.array([variance]),
    )


def found(tested: Tested, loss: Loss | None, level: float) -> Flags:
    """Which points are outliers, at a level for all points of each fit.

    Args:
        loss: a robust one that they were fitted with.
    """
    import scipy.special

    ratio, spread = standardized(tested, loss)
    number = np.maximum(tested.number, 1)
    tail = -0.5 * np.expm1(np.log1p(-level) / number)
    is_judged = tested.counts & (spread > EXACT)
    is_judged &= np.abs(tested.residual) > ROUNDING * _largest(np.abs(tested.y))
    if tested.is_known:
        return is_judged & (ratio > -scipy.special.ndtri(tail))
    used = np.sum(np.where(tested.counts, 1 - spread, 0), axis=1, keepdims=True)
    used = np.clip(used, 0, tested.parameters)
    others = _scale_of_others(ratio, spread, tested.counts, number - used)
    has_others = others.dof > 0
    limit = -scipy.special.stdtrit(np.where(has_others, others.dof, 1), tail)
    return is_judged & has_others & (ratio > limit * np.sqrt(others.variance))


class Standardized(NamedTuple):
    """Residuals over their deviations in units of a point's, and these squared."""

    ratio: Rows
    spread: Rows


def standardized(tested: Tested, loss: Loss | None) -> Standardized:
    """The sizes of residuals over their deviations; zero for what does not count."""
    size = np.where(tested.counts, np.abs(tested.residual), 0)
    variance = tested.variance
    if variance is None:
        dof = np.maximum(tested.number - tested.parameters, 1)
        factor = np.maximum(tested.number, 1) / dof
        variance = (_median(size, tested.counts) ** 2 * factor)[:, 0]
    variance = np.where(variance > 0, variance, np.inf)[:, None]
    curve = np.where(np.isfinite(tested.curve), tested.curve, 0) / variance
    weight = np.ones_like(size) if loss is None else computed(_weight, loss, size)
    spread = 1 + (1 - 2 * weight) * np.clip(curve, 0, 1)
    root = np.sqrt(np.where(spread > EXACT, spread, np.inf))
    return Standardized(size / root, np.where(tested.counts, spread, 1))


def _weight(loss: Loss, residual: Any) -> Any:
    """The part of each residual that the loss leaves in a fit."""
    return loss.evaluate((residual / loss.scale) ** 2)[1]


class Others(NamedTuple):
    """What all other points say of the scale, at each point."""

    variance: Rows
    dof: Rows


def _scale_of_others(
    ratio: Rows, spread: Rows, counts: Flags, dof: Float[np.ndarray, "N 1"]
) -> Others:
    """The scale of all but outliers and the point itself.

    A point without which the sum of squares is taken lowers it by its ratio, squared:
    so much does the curve move.
    """
    is_small = dof < FEW
    inside = counts & ((ratio <= CUT * _median(ratio, counts)) | is_small)
    within = np.where(is_small, 1, WITHIN)
    squares = (
        np.where(inside, ratio**2 * np.maximum(spread, 0), 0).sum(axis=1, keepdims=True)
        / within
    )
    lost = np.sum(counts & ~inside, axis=1, keepdims=True)
    left = dof - lost - inside
    rest = np.maximum(squares - np.where(inside, ratio**2, 0), 0)
    return Others(rest / np.maximum(left, 1), left)


def _median(size: Rows, counts: Flags) -> Float[np.ndarray, "N 1"]:
    """The deviation of normal numbers with this median size; 0 of none."""
    ordered = np.sort(np.where(counts, size, np.inf), axis=1)
    number = np.sum(counts, axis=1, keepdims=True)
    low, high = np.maximum(number - 1, 0) // 2, np.maximum(number // 2, 0)
    ends = [np.take_along_axis(ordered, k, axis=1) for k in (low, high)]
    return np.where(number > 0, MAD * 0.5 * (ends[0] + ends[1]), 0)


def _largest(size: Rows) -> Float[np.ndarray, "N 1"]:
    return np.max(np.where(np.isfinite(size), size, 0), axis=1, keepdims=True)
