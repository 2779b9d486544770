"""Likelihoods of counts."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxfit.losses._likelihood import (
    Elements,
    Likelihood,
    LikelihoodTerms,
    Observed,
    Rows,
    floating,
    like,
    told,
)
from jaxfit.losses._special import half_deviance, log_factorial_rest, within


class Poisson(Likelihood):
    """Counts: photons, decays, events. The mean is positive, or zero with a count of 0.

    The cost is half the deviance, μ - y + y log(y / μ), and the expected curvature 1/μ.
    Counts need not be whole numbers.

    In the information a mean counts as 1e-10 (1e-5 in float32) where it is less, so
    that it is finite for a mean that ends at zero; the slope is exact.
    """

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        return half_deviance(like(mean, observed), mean)

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        y = like(mean, observed)
        safe = within(y, mean)
        return (safe - y) / safe  # 1 - y / mean, without cancellation

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        return 1 / jnp.maximum(mean, least_mean(mean))

    def evaluate(self, mean: Elements, observed: Observed) -> LikelihoodTerms:
        y = like(mean, observed)
        safe = within(y, mean)
        floored = jnp.maximum(mean, jnp.where(y > 0, least_mean(mean), EDGE))
        root = jnp.sqrt(1 / floored)
        # slope / root, where safe and floored are one but at the smallest means
        residual = (safe - y) / safe * (floored * root)
        beyond = floored * self.curvature(mean, observed) - 1
        excess = jnp.sqrt(jnp.where((y > 0) | ~(mean < EDGE), 0, beyond))
        return LikelihoodTerms(half_deviance(y, mean), residual, root, excess)

    def constant(self, observed: Observed) -> Rows:
        return log_factorial_rest(floating(observed))

    def variance(self, mean: Elements) -> Rows:
        return mean

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        return jax.random.poisson(key, mean).astype(mean.dtype)

    def problem_with(self, observed: Observed) -> str | None:
        observed = np.asarray(observed)
        is_bad = ~((observed >= 0) & (observed < np.inf))
        return told(self, observed, is_bad, "give counts of zero or more")


# The cost of a row without counts is the mean itself, which has no curvature; what is
# expected, 1 / mean, would hold up a fit as a wall does. Below this mean it is left to
# the information.
EDGE = 1e-3


def least_mean(mean: Elements) -> float:
    """The mean that any smaller one counts as in the information."""
    info = jnp.finfo(mean.dtype)
    return 1e-10 if info.eps < 1e-10 else max(1e-5, float(info.tiny))
