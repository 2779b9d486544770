"""scipy.special in JAX: the twin of each of its functions that NumPy can dispatch."""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special

from jaxfit._numpy.faddeeva import faddeeva
from jaxfit._numpy.memory import Value


def special_twins() -> dict[Any, Callable]:
    """From a function of scipy.special to its twin.

    Nobody calls one of them where it was not imported, which takes 0.15 s.
    """
    return _twins() if "scipy.special" in sys.modules else {}


@functools.cache
def _twins() -> dict[Any, Callable]:
    import scipy.special

    twins = {name: getattr(special, name, None) for name in _SAME} | _COMPOSED
    homes = (scipy.special, scipy.special._ufuncs)
    return {
        getattr(home, name): twin
        for home in homes
        for name, twin in twins.items()
        if twin is not None and hasattr(home, name)
    }


_SAME = (
    *("beta", "betainc", "betaln", "boxcox", "boxcox1p", "digamma", "entr", "erf"),
    *("erfc", "erfinv", "exp1", "expi", "expit", "expn", "gamma", "gammainc"),
    *("gammaincc", "gammaln", "i0", "i0e", "i1", "i1e", "kl_div", "log_ndtr"),
    *("logit", "ndtr", "ndtri", "poch", "rel_entr", "spence", "xlog1py", "xlogy"),
)


def wofz(z: Value) -> Value:
    """Faddeeva's function w(z) = exp(-z²) erfc(-iz) in the whole plane.

    Below the real axis w(z) = 2 exp(-z²) - w(-z) (Abramowitz and Stegun, 7.1.11).
    """
    is_below = jnp.imag(z) < 0
    below = jnp.where(is_below, z, 0)
    upper = faddeeva(jnp.where(is_below, -z, z))
    return jnp.where(is_below, 2 * jnp.exp(-(below**2)) - upper, upper)


def _erfcx(x: Value) -> Value:
    return jnp.real(wofz(1j * x))


def _dawsn(x: Value) -> Value:
    return math.sqrt(math.pi) / 2 * jnp.imag(wofz(x + 0j))


def _erfi(x: Value) -> Value:
    return 2 / math.sqrt(math.pi) * jnp.exp(x**2) * _dawsn(x)


def _voigt_profile(x: Value, sigma: Value, gamma: Value) -> Value:
    """Voigt's profile; Gauss's or Lorentz's where the other width is zero."""
    x, sigma, gamma = jnp.broadcast_arrays(x, sigma, gamma)
    is_lorentz, is_gauss = sigma == 0, gamma == 0
    width = jnp.where(is_lorentz, 1, sigma) * math.sqrt(2)
    half = jnp.where(is_lorentz & is_gauss, 1, gamma)
    voigt = jnp.real(wofz((x + 1j * half) / width)) / (width * math.sqrt(math.pi))
    lorentz = half / (math.pi * jnp.where(is_lorentz, x**2 + half**2, 1))
    peak = jnp.where(x == 0, jnp.inf, 0.0)
    limit = jnp.where(is_gauss, peak, lorentz)
    return jnp.where(is_lorentz, limit, voigt)


def _loggamma(x: Value) -> Value:
    return jnp.where(x < 0, jnp.nan, special.gammaln(x))


def _rgamma(x: Value) -> Value:
    is_pole = (x <= 0) & (x == jnp.floor(x))
    return jnp.where(is_pole, 0.0, 1 / special.gamma(jnp.where(is_pole, 1, x)))


def _binom(n: Value, k: Value) -> Value:
    return _rgamma(k + 1) * _rgamma(n - k + 1) * special.gamma(n + 1)


def _exprel(x: Value) -> Value:
    is_small = jnp.abs(x) < 1e-5
    apart = jnp.where(is_small, 1, x)
    return jnp.where(is_small, 1 + x / 2 + x**2 / 6, jnp.expm1(apart) / apart)


def _huber(delta: Value, r: Value) -> Value:
    size = jnp.abs(r)
    loss = jnp.where(size <= delta, r**2 / 2, delta * (size - delta / 2))
    return jnp.where(delta < 0, jnp.inf, loss)


def _pseudo_huber(delta: Value, r: Value) -> Value:
    ratio = r / jnp.where(delta == 0, 1, delta)
    loss = delta**2 * (ratio**2 / (jnp.sqrt(1 + ratio**2) + 1))
    return jnp.where(delta < 0, jnp.inf, loss)


_COMPOSED: dict[str, Callable] = {
    "_zeta": special.zeta,  # which scipy.special.zeta calls
    "psi": special.digamma,
    "wofz": wofz,
    "erfcx": _erfcx,
    "dawsn": _dawsn,
    "erfi": _erfi,
    "voigt_profile": _voigt_profile,
    "loggamma": _loggamma,
    "rgamma": _rgamma,
    "binom": _binom,
    "exprel": _exprel,
    "huber": _huber,
    "pseudo_huber": _pseudo_huber,
    "log_expit": jax.nn.log_sigmoid,
    "cbrt": jnp.cbrt,
    "exp2": jnp.exp2,
    "exp10": lambda x: jnp.power(10.0, x),
    "expm1": jnp.expm1,
    "log1p": jnp.log1p,
    "cosm1": lambda x: -2 * jnp.sin(x / 2) ** 2,
    "sindg": lambda x: jnp.sin(jnp.deg2rad(x)),
    "cosdg": lambda x: jnp.cos(jnp.deg2rad(x)),
    "tandg": lambda x: jnp.tan(jnp.deg2rad(x)),
    "betaincc": lambda a, b, x: special.betainc(b, a, 1 - x),
    "inv_boxcox": lambda y, p: jnp.where(
        p == 0, jnp.exp(y), jnp.exp(jnp.log1p(p * y) / jnp.where(p == 0, 1, p))
    ),
}
