"""Functions of likelihoods that lose no digits, and whose derivatives do not either."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

Rows = Float[Array, "..."]


@jax.custom_jvp
def half_deviance(observed: Rows, mean: Rows) -> Rows:
    """y log(y / μ) - (y - μ), Poisson's half deviance, to the last digits near y = μ.

    With s = (y - μ) / (y + μ) it is (y - μ) s + 2 y (atanh s - s), and the last
    difference a series in s²: Loader's bd0 (Fast and accurate computation of binomial
    probabilities, 2000). He takes it for small s, and a logarithm for others. A choice
    among them keeps processors from working on several rows at once. Here a power of
    two brings μ so near to y that the series always does: with μ' = 2^k μ,

        y log(y / μ) - (y - μ)  =  [y log(y / μ') - (y - μ')]  +  k y log 2  +  μ - μ'.

    It is 0 at y = μ = 0, and NaN where y or μ is negative or μ alone is zero.
    """
    y, safe = observed, within(observed, mean)
    power = power_of_two(jnp.where(y == 0, safe, y), safe)
    nearer = safe * power.value
    s = (y - nearer) / (y + nearer)
    w = s * s
    series = jnp.zeros_like(w)
    for term in reversed(range(10 if jnp.finfo(w.dtype).eps < 1e-10 else 4)):
        series = series * w + 1 / (2 * term + 3)
    near = s * ((y - nearer) + 2 * y * w * series)
    total = near + (y * power.exponent * math.log(2) + (mean - nearer))
    return jnp.where(y >= 0, total, jnp.nan)


class Power(NamedTuple):
    """A power of two and its exponent."""

    value: Rows
    exponent: Rows


def power_of_two(a: Rows, b: Rows) -> Power:
    """That with which b comes near to a, both positive, without a division.

    The bits of a number are its logarithm but for 0.09, so that by the rounded
    difference of theirs b lies between 2/3 a and 3/2 a.
    """
    info = jnp.finfo(a.dtype)
    whole = jnp.dtype(f"int{info.bits}")

    def bits_of(number: Rows | float) -> Array:
        values = jnp.asarray(number, a.dtype)
        return lax.bitcast_convert_type(values, whole)

    places = jnp.asarray(info.nmant, whole)
    # counted from a number so low that no sign is shifted: vectors have no such shift
    least = 2.0 ** (2 - info.maxexp)
    half = jnp.asarray(1 << (info.nmant - 1), whole)
    above = bits_of(a) - bits_of(b) + (bits_of(1) - bits_of(least) + half)
    places = jnp.broadcast_to(places, above.shape)
    exponent = lax.shift_right_logical(above, places)
    shifted = lax.shift_left(exponent, places)
    value = lax.bitcast_convert_type(shifted + bits_of(least), a.dtype)
    # a whole number in the last bits of a float that is large enough
    large = 1.5 * 2.0**info.nmant
    sum_of_both = lax.bitcast_convert_type(bits_of(large) + exponent, a.dtype)
    return Power(value, sum_of_both - (large + info.maxexp - 2))


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
    """The mean where it is positive, the least one where y is zero too, or NaN."""
    both_zero = (mean == 0) & (observed == 0)
    return jnp.where(mean > 0, mean, jnp.where(both_zero, least_mean(mean), jnp.nan))


def slope_of_count(observed: Rows, mean: Rows) -> Rows:
    """1 - y / μ without cancellation: the derivative of `half_deviance` by the mean."""
    safe = within(observed, mean)
    return (safe - observed) * (1 / safe)


def least_mean(mean: Rows) -> float:
    """What a smaller mean counts as in the information: 1e-10, or 1e-5 in float32."""
    info = jnp.finfo(mean.dtype)
    return 1e-10 if info.eps < 1e-10 else max(1e-5, float(info.tiny))


def floored(mean: Rows) -> Rows:
    """The mean as it counts in the information."""
    return jnp.maximum(mean, least_mean(mean))


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
