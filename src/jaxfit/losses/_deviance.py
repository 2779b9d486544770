"""The expectation and variance of the deviance of counts, on the host.

Each row's deviance has about the moments of chi-square of one degree of freedom, 1 and
2, only where counts are large; a goodness of fit at low counts is judged against the
moments themselves (Kaastra, A&A 605, A51, 2017, who tabulates them for Poisson).
"""

import numpy as np
from jaxtyping import Float, Real

from jaxfit.losses._likelihood import ExpectedDeviance, Means

Flat = Float[np.ndarray, " rows"]
POISSON_IS_LARGE, BINOMIAL_IS_LARGE = 50.0, 300.0  # means of which series suffice
ELEMENTS = 1 << 21  # of a table of probabilities at a time
EXPECTATION = (1, 1 / 6, 1 / 6, 19 / 60, 9 / 10, 863 / 252, 1375 / 84)
VARIANCE = (2, 2 / 3, 4 / 3, 701 / 180, 449 / 30, 90329 / 1260, 43313 / 105)


def deviance_of_counts(
    mean: Means, trials: Real[np.ndarray, "..."] | float = np.inf
) -> ExpectedDeviance:
    """The moments for Poisson's counts, or the binomial's if the trials are finite."""
    shape = np.broadcast_shapes(np.shape(mean), np.shape(trials))
    flat = np.broadcast_to(np.asarray(mean, float), shape).ravel()
    most = np.broadcast_to(np.asarray(trials, float), shape).ravel()
    flat = np.where(flat > most / 2, most - flat, flat)  # failures for successes
    is_large = flat > np.where(most < np.inf, BINOMIAL_IS_LARGE, POISSON_IS_LARGE)
    expectation, variance = np.full(flat.shape, np.nan), np.full(flat.shape, np.nan)
    expectation[is_large], variance[is_large] = _series(flat[is_large], most[is_large])
    is_small = ~is_large & (flat >= 0)
    expectation[is_small], variance[is_small] = _sums(flat[is_small], most[is_small])
    return ExpectedDeviance(expectation.reshape(shape), variance.reshape(shape))


def _series(mean: Flat, trials: Flat) -> ExpectedDeviance:
    """In powers of 1 / mean, from the deviance's Taylor series and central moments.

    The binomial's first term takes 1/μ + 1/(n - μ) - 1/n in place of 1/μ; the others
    are too small to matter.
    """
    inverse = 1 / mean
    first = 1 / (trials - mean) - 1 / trials  # 0 for Poisson
    return ExpectedDeviance(
        np.polynomial.polynomial.polyval(inverse, EXPECTATION) + first / 6,
        np.polynomial.polynomial.polyval(inverse, VARIANCE) + first * 2 / 3,
    )


def _sums(mean: Flat, trials: Flat) -> ExpectedDeviance:
    """Over all counts that matter, some rows at a time, similar ones together."""
    order = np.argsort(mean)
    expectation, variance = np.empty(mean.shape), np.empty(mean.shape)
    first = 0
    while first < len(order):
        widest = mean[order[min(first + 4096, len(order)) - 1]]
        terms = int(18 * np.sqrt(widest) + 40)
        rows = order[first : first + min(4096, max(1, ELEMENTS // terms))]
        sums = _sum_of(mean[rows], trials[rows], terms)
        expectation[rows], variance[rows] = sums.expectation, sums.variance
        first += len(rows)
    return ExpectedDeviance(expectation, variance)


def _sum_of(mean: Flat, trials: Flat, terms: int) -> ExpectedDeviance:
    """Over so many counts around each mean, probabilities by their ratios."""
    mean, trials = mean[:, None], trials[:, None]
    first = np.maximum(np.floor(mean - 9 * np.sqrt(mean) - 10), 0)
    count = first + np.arange(terms)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.where(
            trials < np.inf,
            mean / (trials - mean) * np.maximum(trials - count, 0),
            mean,
        )
        steps = np.log(odds[:, :-1] / count[:, 1:])
        logs = np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1)
        chance = np.exp(logs - logs.max(axis=1, keepdims=True))
        deviance = 2 * (_part(count, mean) + _part(trials - count, trials - mean))
        deviance = np.where(chance > 0, deviance, 0)
    chance /= chance.sum(axis=1, keepdims=True)
    expectation = (chance * deviance).sum(axis=1)
    spread = deviance - expectation[:, None]
    return ExpectedDeviance(expectation, (chance * spread**2).sum(axis=1))


def _part(count: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Poisson's half deviance; none of trials without end."""
    half = np.where(count == 0, 0, count * np.log(count / mean)) - (count - mean)
    return np.where(np.isinf(mean), 0, half)
