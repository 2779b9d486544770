"""The Faddeeva function, of which the Voigt profile is the real part.

Weideman's rational expansion (SIAM J. Numer. Anal. 31, 1994, eq. 38) near the origin
and the asymptotic series (Abramowitz and Stegun, 7.1.23) beyond: together within
3e-14 of the true value in the upper half plane, and smooth functions of z.
"""

import functools
import math

import jax
import numpy as np
from jaxtyping import Array, Complex

from jaxfit.models._either import is_numpy, xp

TERMS = 40  # of the expansion; more do not add digits in float64
FAR = 8.0  # |z| beyond which the series is the more exact
ROOT = 1 / math.sqrt(math.pi)

# w = i/√π times the sum of (2k-1)!!/2^k z^-(2k+1), and its derivative
FAR_TERMS = [
    1j * ROOT * math.prod(range(1, 2 * k, 2)) / 2**k for k in range(15, -1, -1)
]
FAR_SLOPES = [
    -(2 * k + 1) * term for k, term in zip(range(15, -1, -1), FAR_TERMS, strict=True)
]


@functools.cache
def _coefficients() -> tuple[float, list[float]]:
    """The length L and the coefficients of the expansion, the highest power first."""
    nodes = 4 * TERMS
    theta = np.arange(-nodes // 2 + 1, nodes // 2) * 2 * np.pi / nodes
    length = np.sqrt(TERMS / np.sqrt(2))
    t = length * np.tan(theta / 2)
    values = np.concatenate([[0], np.exp(-(t**2)) * (length**2 + t**2)])
    a = np.fft.fft(np.fft.fftshift(values)).real / nodes
    return float(length), a[TERMS:0:-1].tolist()


def faddeeva(z: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """w(z) = exp(-z²) erfc(-iz), for z in the upper half plane.

    With its derivative, w' = 2i/√π - 2zw (7.1.20), it is there once in a program,
    however many derivatives are taken.
    """
    return _values(z) if is_numpy(z) else _differentiable(z)


def _values(z):
    is_far, near, far = _halves(z)
    return xp.where(is_far, far * _series(far**2, FAR_TERMS), _expansion(near))


_differentiable = jax.custom_jvp(_values)


@_differentiable.defjvp
def _faddeeva_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    w = faddeeva(z)
    is_far, near, far = _halves(z)
    of_far = far**2 * _series(far**2, FAR_SLOPES)  # 7.1.20 cancels there
    slope = xp.where(is_far, of_far, 2j * ROOT - 2 * near * w)
    return w, slope * dz


def _halves(z):
    """Where |z| is large, z where it is not, and 1/z where it is."""
    is_far = xp.abs(z) > FAR
    return is_far, xp.where(is_far, 0, z), 1 / xp.where(is_far, z, FAR)


def _series(x, coefficients):
    """A polynomial, the highest power first."""
    total = xp.zeros_like(x)
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


def _expansion(z):
    length, coefficients = _coefficients()
    inverse = 1 / (length - 1j * z)
    ratio = (length + 1j * z) * inverse
    return (2 * _series(ratio, coefficients) * inverse + ROOT) * inverse
