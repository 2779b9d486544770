"""Likelihoods of counts."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from jaxfit.losses._deviance import deviance_of_counts
from jaxfit.losses._likelihood import (
    MOST,
    Elements,
    ExpectedDeviance,
    Likelihood,
    LikelihoodTerms,
    Means,
    Most,
    Observed,
    Rows,
    floating,
    judge,
    like,
    told,
)
from jaxfit.losses._special import (
    floored,
    half_deviance,
    least_mean,
    log_factorial_rest,
    slope_of_count,
)


class Counts(NamedTuple):
    """Counts and their means."""

    observed: Rows
    mean: Rows


class Known(NamedTuple):
    """The mean whose inverse is the curvature that a solver sees.

    The cost of a row without counts is the mean itself, which has no curvature; what is
    expected, 1 / mean, would hold up a fit as a wall does. While a fit is under way
    such a mean counts as 1 / `most` where it is less. That is 1e-3, or less where even
    so all rows together would not expect one count: where counts are few in many rows,
    it is the expected curvature that tells how few.
    """

    mean: Rows
    is_empty: Bool[Array, "..."]  # nothing was counted
    limited: Bool[Array, "..."]


def known(observed: Rows, mean: Rows, most: Most) -> Known:
    """A mean as a solver sees its curvature."""
    is_empty, dtype = observed == 0, mean.dtype
    most = jnp.asarray(most, dtype)
    edge = jnp.maximum(1 / most, least_mean(mean))
    tiny = jnp.asarray(float(jnp.finfo(dtype).tiny) ** 0.5, dtype)
    limited = is_empty & (mean < edge) & (most < jnp.inf)
    return Known(jnp.maximum(mean, jnp.where(is_empty, edge, tiny)), is_empty, limited)


def terms_of_count(observed: Rows, mean: Rows, most: Most) -> LikelihoodTerms:
    """What a solver takes, with one root and two divisions."""
    seen = known(observed, mean, most)
    root = jnp.sqrt(1 / seen.mean)
    return LikelihoodTerms(
        cost=half_deviance(observed, mean),
        # slope / root; the slope of an empty row is 1
        residual=jnp.where(seen.is_empty, seen.mean, mean - observed) * root,
        root=root,
        limited=seen.limited,
    )


class Poisson(Likelihood):
    """Counts: photons, decays, events. The mean is positive, or zero with a count of 0.

    The cost is half the deviance, μ - y + y log(y / μ), and the expected curvature 1/μ.
    Counts need not be whole numbers.

    In the information a mean counts as 1e-10 (1e-5 in float32) where it is less, so
    that it is finite for a mean that ends at zero; the slope is exact.
    """

    has_positive_mean: ClassVar[bool] = True

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        return half_deviance(like(mean, observed), mean)

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        return slope_of_count(like(mean, observed), mean)

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        return 1 / floored(mean)

    def evaluate(
        self, mean: Elements, observed: Observed, most: Most = MOST
    ) -> LikelihoodTerms:
        return terms_of_count(like(mean, observed), mean, most)

    def constant(self, observed: Observed) -> Rows:
        return log_factorial_rest(floating(observed))

    def variance(self, mean: Elements) -> Rows:
        return mean

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        return jax.random.poisson(key, mean).astype(mean.dtype)

    def expected_deviance(self, mean: Means) -> ExpectedDeviance:
        """Kaastra's (A&A 605, A51, 2017): sums, or series where these are long."""
        return deviance_of_counts(np.asarray(mean))

    def problem_with(self, observed: Observed) -> str | None:
        observed = np.asarray(observed)
        is_bad = ~((observed >= 0) & (observed < np.inf))
        return told(self, observed, is_bad, "give counts of zero or more")


class PoissonGaussian(Likelihood):
    """Counts with Gaussian noise on top, as a camera reads them out.

    The observed value plus the variance is taken for a count of the mean plus the
    variance, which has the same mean and variance (the shifted Poisson of Huang et al.,
    Nature Methods 10, 2013). Observed values may be negative; one below minus the
    variance, where that count would be less than none, is judged as minus the variance.

    Args:
        variance: that of the Gaussian noise, in counts²; a number or one for each row.
    """

    has_positive_mean: ClassVar[bool] = True
    readout: Any

    def __init__(self, variance: Any) -> None:
        self.readout = variance

    def __check_init__(self) -> None:
        judge(self, "variance", self.readout, allows_zero=True)

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        count, shifted = self._shifted(mean, observed)
        return half_deviance(count, shifted)

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        count, shifted = self._shifted(mean, observed)
        return slope_of_count(count, shifted)

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        return 1 / floored(mean + like(mean, self.readout))

    def evaluate(
        self, mean: Elements, observed: Observed, most: Most = MOST
    ) -> LikelihoodTerms:
        count, shifted = self._shifted(mean, observed)
        return terms_of_count(count, shifted, most)

    def constant(self, observed: Observed) -> Rows:
        observed = floating(observed)
        shifted = observed + like(observed, self.readout)
        return log_factorial_rest(jnp.maximum(shifted, 0))

    def variance(self, mean: Elements) -> Rows:
        return mean + like(mean, self.readout)

    def expected_deviance(self, mean: Means) -> ExpectedDeviance:
        """That of the shifted counts, as if they were whole numbers."""
        return deviance_of_counts(np.asarray(mean) + np.asarray(self.readout))

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        of_count, of_noise = jax.random.split(key)
        variance = like(mean, self.readout)
        shape = jnp.broadcast_shapes(mean.shape, variance.shape)
        count = jax.random.poisson(of_count, mean, shape).astype(mean.dtype)
        noise = jnp.sqrt(variance) * jax.random.normal(of_noise, shape, mean.dtype)
        return count + noise

    def _shifted(self, mean: Elements, observed: Observed) -> Counts:
        variance = like(mean, self.readout)
        count = like(mean, observed) + variance
        return Counts(jnp.where(count < 0, 0, count), mean + variance)


class Binomial(Likelihood):
    """Successes among trials: the mean is the expected number, from 0 to trials.

    The cost is half the deviance, k log(k / μ) + (n - k) log((n - k) / (n - μ)), and
    the expected curvature 1/μ + 1/(n - μ), where each of both numbers counts as 1e-10
    (1e-5 in float32) where it is less. A mean of 0 is allowed with no success, and one
    of n with n.

    Args:
        trials: how many, a number or one for each row.
    """

    has_positive_mean: ClassVar[bool] = True
    trials: Any

    def __check_init__(self) -> None:
        judge(self, "trials", self.trials)

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        k, n = like(mean, observed), like(mean, self.trials)
        return half_deviance(k, mean) + half_deviance(n - k, n - mean)

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        k, n = like(mean, observed), like(mean, self.trials)
        return slope_of_count(k, mean) - slope_of_count(n - k, n - mean)

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        n = like(mean, self.trials)
        return 1 / floored(mean) + 1 / floored(n - mean)

    def evaluate(
        self, mean: Elements, observed: Observed, most: Most = MOST
    ) -> LikelihoodTerms:
        k, n = like(mean, observed), like(mean, self.trials)
        one, other = known(k, mean, most), known(n - k, n - mean, most)
        root = jnp.sqrt(1 / one.mean + 1 / other.mean)
        return LikelihoodTerms(
            cost=self.cost(mean, observed),
            residual=self.slope(mean, observed) / root,
            root=root,
            limited=one.limited | other.limited,
        )

    def constant(self, observed: Observed) -> Rows:
        k = floating(observed)
        n = like(k, self.trials)
        rest = log_factorial_rest
        return rest(k) + rest(n - k) - rest(n)

    def variance(self, mean: Elements) -> Rows:
        n = like(mean, self.trials)
        return mean * (n - mean) / n

    def expected_deviance(self, mean: Means) -> ExpectedDeviance:
        """A sum over the numbers of successes, or a series where these are many."""
        return deviance_of_counts(np.asarray(mean), np.asarray(self.trials))

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        n = like(mean, self.trials)
        return jax.random.binomial(key, n, mean / n).astype(mean.dtype)

    def problem_with(self, observed: Observed) -> str | None:
        observed = np.asarray(observed)
        trials = np.asarray(self.trials)
        is_bad = ~((observed >= 0) & (observed <= trials))
        advice = "give numbers of successes from zero to the number of trials"
        return told(self, observed, is_bad, advice)
