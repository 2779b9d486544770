"""Functions of likelihoods that lose no digits, and whose derivatives do not either."""

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

Elements = Float[Array, "*shape"]
Rows = Float[Array, "..."]
SMALL = 0.2  # |s| up to which a series is more precise than a logarithm


@jax.custom_jvp
def half_deviance(observed: Rows, mean: Rows) -> Rows:
    """y log(y / μ) - (y - μ), Poisson's half deviance, to the last digits near y = μ.

    With s = (y - μ) / (y + μ) it is (y - μ) s + 2 y (atanh s - s), where small s takes
    a series: Loader's bd0 (Fast and accurate computation of binomial probabilities,
    2000). It is 0 at y = μ = 0, and NaN where y or μ is negative or μ alone is zero.
    """
    y, safe = observed, within(observed, mean)
    s = (y - safe) / (y + safe)
    w = s * s
    series = jnp.zeros_like(w)
    for power in reversed(range(10 if jnp.finfo(w.dtype).eps < 1e-10 else 4)):
        series = series * w + 1 / (2 * power + 3)
    near = s * ((y - safe) + 2 * y * w * series)
    far = y * jnp.log(jnp.where(y == 0, 1, y / safe)) - (y - mean)
    return jnp.where(w < SMALL**2, near, jnp.where(mean >= 0, far, jnp.nan))


@half_deviance.defjvp
def _half_deviance_jvp(
    primals: tuple[Rows, Rows], tangents: tuple[Rows, Rows]
) -> tuple[Rows, Rows]:
    """Written out, so that higher derivatives are exact and finite for y = 0 too.

    The derivative by y is log(y / μ). At y = 0, where it is infinite, the logarithm of
    the least positive number stands in for that of y.
    """
    (y, mean), (y_dot, mean_dot) = primals, tangents
    safe = within(y, mean)
    least = jnp.finfo(y.dtype).tiny
    log_ratio = jnp.log(jnp.where(y == 0, least, y)) - jnp.log(safe)
    return half_deviance(y, mean), (safe - y) / safe * mean_dot + log_ratio * y_dot


def within(observed: Rows, mean: Rows) -> Rows:
    """The mean where it is positive, 1 where it and y are zero, and NaN elsewhere."""
    both_zero = (mean == 0) & (observed == 0)
    return jnp.where(mean > 0, mean, jnp.where(both_zero, 1, jnp.nan))


def slope_of_count(observed: Rows, mean: Rows) -> Rows:
    """1 - y / μ without cancellation: the derivative of `half_deviance` by the mean."""
    safe = within(observed, mean)
    return (safe - observed) / safe


def floored(mean: Rows) -> Rows:
    """The mean, or the least one that counts in the information: 1e-10 or 1e-5."""
    info = jnp.finfo(mean.dtype)
    return jnp.maximum(mean, 1e-10 if info.eps < 1e-10 else max(1e-5, float(info.tiny)))


def log_factorial_rest(y: Rows) -> Rows:
    """log Γ(y + 1) + y - y log y, by Stirling's series where these are large."""
    is_large = y > 10
    large = jnp.where(is_large, y, 10)
    inverse = 1 / large
    w = inverse * inverse
    series = inverse * (
        1 / 12 + w * (-1 / 360 + w * (1 / 1260 + w * (-1 / 1680 + w / 1188)))
    )
    small = jnp.where(is_large | (y == 0), 1, y)
    direct = gammaln(small + 1) + small - small * jnp.log(small)
    return jnp.where(
        is_large,
        (jnp.log(large) + LOG_TWO_PI) / 2 + series,
        jnp.where(y == 0, 0, direct),
    )


LOG_TWO_PI = 1.8378770664093453
