"""Likelihoods of amplitudes: intensities, magnitudes, and values with outliers."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Key

from jaxfit.losses import _rice
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
from jaxfit.losses._special import half_deviance


class Gamma(Likelihood):
    """Positive values whose standard deviation is a fixed part of their mean.

    Speckle, waiting times, periodograms; that part is 1 / √shape, and a shape of 1 is
    the exponential distribution. The cost, shape (y/μ - 1 - log(y/μ)), is half the
    deviance; the expected curvature is shape / μ². The shape does not move the answer.

    Args:
        shape: a number or one for each row.
    """

    has_positive_mean: ClassVar[bool] = True
    shape: Any = 1.0

    def __check_init__(self) -> None:
        judge(self, "shape", self.shape)

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        # with the sides changed, Poisson's half deviance is this times the mean
        half = half_deviance(mean, like(mean, observed))
        return like(mean, self.shape) * half / mean

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        y = like(mean, observed)
        return like(mean, self.shape) * ((mean - y) / mean) / mean

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        return like(mean, self.shape) / mean / mean

    def evaluate(
        self, mean: Elements, observed: Observed, most: Most = MOST
    ) -> LikelihoodTerms:
        relative = jnp.sqrt(like(mean, self.shape))
        return LikelihoodTerms(
            cost=self.cost(mean, observed),
            residual=relative * ((mean - like(mean, observed)) / mean),
            root=relative / mean,
        )

    def constant(self, observed: Observed) -> Rows:
        observed = floating(observed)
        shape = like(observed, self.shape)
        return jnp.log(observed) + gammaln(shape) + shape - shape * jnp.log(shape)

    def expected_deviance(self, mean: Means) -> ExpectedDeviance:
        """In closed form; it is that of any mean."""
        from scipy.special import digamma, polygamma

        shape = np.asarray(self.shape, float)
        expectation = 2 * shape * (np.log(shape) - digamma(shape))
        variance = 4 * shape**2 * (polygamma(1, shape) - 1 / shape)
        return everywhere(mean, expectation, variance)

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        shape = like(mean, self.shape)
        size = jnp.broadcast_shapes(mean.shape, shape.shape)
        return mean * (jax.random.gamma(key, shape, size, mean.dtype) / shape)

    def problem_with(self, observed: Observed) -> str | None:
        return unless_positive(self, observed)


class Rician(Likelihood):
    """Magnitudes of a complex signal with Gaussian noise in both parts, as in MR.

    The mean is the underlying magnitude ν. Its sign does not matter, so that a model
    may pass zero. The cost is minus the log-likelihood,

        -log(M/σ²) + (M² + ν²)/(2 σ²) - log I₀(M ν/σ²),

    which has no saturated model in closed form (Gudbjartsson and Patz, Magnetic
    Resonance in Medicine 34, 1995). At ν = 0 the expected curvature is zero, and the
    residual is its limit 1 - M²/(2 σ²). The root has the sign of ν, so that both are
    smooth there.

    Args:
        sigma: the standard deviation of each part, a number or one for each row.
    """

    is_deviance: ClassVar[bool] = False
    sigma: Any

    def __check_init__(self) -> None:
        judge(self, "sigma", self.sigma)

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        sigma = like(mean, self.sigma)
        m, a = like(mean, observed) / sigma, mean / sigma
        return _rice.minus_log_density(m, a) + jnp.log(sigma)

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        sigma = like(mean, self.sigma)
        m, a = like(mean, observed) / sigma, mean / sigma
        return a * _rice.relative_score(m, a) / sigma

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        sigma = like(mean, self.sigma)
        a = mean / sigma
        return a * a * _rice.relative_information(a) / sigma**2

    def evaluate(
        self, mean: Elements, observed: Observed, most: Most = MOST
    ) -> LikelihoodTerms:
        sigma = like(mean, self.sigma)
        m, a = like(mean, observed) / sigma, mean / sigma
        relative = jnp.sqrt(_rice.relative_information(a))
        return LikelihoodTerms(
            cost=_rice.minus_log_density(m, a) + jnp.log(sigma),
            residual=_rice.relative_score(m, a) / relative,
            root=a * relative / sigma,
        )

    def expected(self, mean: Elements) -> Rows:
        sigma = like(mean, self.sigma)
        return sigma * _rice.expectation(mean / sigma)

    def variance(self, mean: Elements) -> Rows:
        sigma = like(mean, self.sigma)
        return sigma**2 * _rice.variance(mean / sigma)

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        sigma = like(mean, self.sigma)
        size = jnp.broadcast_shapes(mean.shape, sigma.shape)
        noise = sigma * jax.random.normal(key, (2, *size), mean.dtype)
        return jnp.hypot(mean + noise[0], noise[1])

    def problem_with(self, observed: Observed) -> str | None:
        return unless_positive(self, observed)


class StudentT(Likelihood):
    """Values with heavier tails than Gauss's: outliers, as a distribution.

    The cost is (df + 1)/2 log(1 + r²/(df scale²)) of the difference r, half a deviance,
    and the expected curvature (df + 1)/((df + 3) scale²) (Lange, Little and Taylor,
    JASA 84, 1989). Minima may be several.

    Args:
        scale: of the distribution, which is not its standard deviation.
        df: degrees of freedom: small ones have heavy tails, 1 is Cauchy's distribution.
            Numbers, or one for each row.
    """

    scale: Any
    df: Any

    def __check_init__(self) -> None:
        judge(self, "scale", self.scale)
        judge(self, "df", self.df)

    def cost(self, mean: Elements, observed: Observed) -> Rows:
        scale, df = like(mean, self.scale), like(mean, self.df)
        z = (mean - like(mean, observed)) / scale
        return (df + 1) / 2 * jnp.log1p(z * z / df)

    def slope(self, mean: Elements, observed: Observed) -> Rows:
        scale, df = like(mean, self.scale), like(mean, self.df)
        z = (mean - like(mean, observed)) / scale
        return (df + 1) * z / ((df + z * z) * scale)

    def curvature(self, mean: Elements, observed: Observed) -> Rows:
        scale, df = like(mean, self.scale), like(mean, self.df)
        of_one = (df + 1) / ((df + 3) * scale**2)
        return jnp.broadcast_to(of_one, jnp.broadcast_shapes(of_one.shape, mean.shape))

    def constant(self, observed: Observed) -> Rows:
        observed = floating(observed)
        scale, df = like(observed, self.scale), like(observed, self.df)
        of_df = gammaln(df / 2) - gammaln((df + 1) / 2) + jnp.log(df * jnp.pi) / 2
        return jnp.zeros_like(observed) + of_df + jnp.log(scale)

    def variance(self, mean: Elements) -> Rows:
        """Infinite up to two degrees of freedom."""
        scale, df = like(mean, self.scale), like(mean, self.df)
        over = jnp.where(df > 2, df - 2, 1)
        of_one = jnp.where(df > 2, scale**2 * df / over, jnp.inf)
        return jnp.zeros_like(mean) + of_one

    def expected_deviance(self, mean: Means) -> ExpectedDeviance:
        """In closed form, since 1/(1 + r²/(df scale²)) follows a beta distribution."""
        from scipy.special import digamma, polygamma

        df = np.asarray(self.df, float)
        expectation = (df + 1) * (digamma((df + 1) / 2) - digamma(df / 2))
        spread = polygamma(1, df / 2) - polygamma(1, (df + 1) / 2)
        return everywhere(mean, expectation, (df + 1) ** 2 * spread)

    def sample(self, key: Key[Array, ""] | Array, mean: Elements) -> Rows:
        scale, df = like(mean, self.scale), like(mean, self.df)
        size = jnp.broadcast_shapes(mean.shape, scale.shape, df.shape)
        return mean + scale * jax.random.t(key, df, size, mean.dtype)


def unless_positive(likelihood: Likelihood, observed: Observed) -> str | None:
    """A sentence about the first observed value that is not positive and finite."""
    observed = np.asarray(observed)
    is_bad = ~((observed > 0) & (observed < np.inf))
    return told(likelihood, observed, is_bad, "give positive numbers")


def everywhere(mean: Means, expectation: Any, variance: Any) -> ExpectedDeviance:
    """The same moments at every mean."""
    zero = np.zeros(np.shape(mean))
    return ExpectedDeviance(expectation + zero, variance + zero)
