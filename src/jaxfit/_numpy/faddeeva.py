"""The Faddeeva function, of which the Voigt profile is the real part.

Weideman's rational expansion (SIAM J. Numer. Anal. 31, 1994, eq. 38) near the origin
and the asymptotic series (Abramowitz and Stegun, 7.1.23) beyond: together within
3e-14 of the true value in the upper half plane, and smooth functions of z.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Complex

from jaxfit._numpy.either import is_numpy, xp

Plane = Complex[Any, "*shape"]

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


class _Expansion(NamedTuple):
    """Weideman's expansion in (L + iz) / (L - iz)."""

    length: float
    coefficients: list[float]  # the highest power first


@functools.cache
def _weideman() -> _Expansion:
    nodes = 4 * TERMS
    theta = np.arange(-nodes // 2 + 1, nodes // 2) * 2 * np.pi / nodes
    length = np.sqrt(TERMS / np.sqrt(2))
    t = length * np.tan(theta / 2)
    values = np.concatenate([[0], np.exp(-(t**2)) * (length**2 + t**2)])
    a = np.real(np.fft.fft(np.fft.fftshift(values))) / nodes
    return _Expansion(float(length), a[TERMS:0:-1].tolist())


def faddeeva(z: Plane) -> Plane:
    """w(z) = exp(-z²) erfc(-iz), for z in the upper half plane.

    With its derivative, w' = 2i/√π - 2zw (7.1.20), it is there once in a program,
    however many derivatives are taken.
    """
    return _values(z) if is_numpy(z) else _differentiable(z)


def _values(z: Plane) -> Plane:
    is_far, near, inverse = _halves(z)
    far = inverse * _polynomial(inverse**2, FAR_TERMS)
    return xp.where(is_far, far, _near_origin(near))


_differentiable = jax.custom_jvp(_values)


@_differentiable.defjvp
def _faddeeva_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (z,), (dz,) = primals, tangents
    w = faddeeva(z)
    is_far, near, inverse = _halves(z)
    far = inverse**2 * _polynomial(inverse**2, FAR_SLOPES)  # 7.1.20 cancels there
    slope = xp.where(is_far, far, 2j * ROOT - 2 * near * w)
    return w, slope * dz


class _Halves(NamedTuple):
    """The parts of the plane, each with numbers that are harmless in the other."""

    is_far: Any  # where |z| is large
    near: Any  # z where it is not
    inverse: Any  # 1/z where it is


def _halves(z: Plane) -> _Halves:
    is_far = xp.abs(z) > FAR
    return _Halves(is_far, xp.where(is_far, 0, z), 1 / xp.where(is_far, z, FAR))


def _polynomial(x: Plane, coefficients: Sequence[float | complex]) -> Plane:
    """A polynomial, the highest power first."""
    total = xp.zeros_like(x)
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


def _near_origin(z: Plane) -> Plane:
    length, coefficients = _weideman()
    inverse = 1 / (length - 1j * z)
    ratio = (length + 1j * z) * inverse
    return (2 * _polynomial(ratio, coefficients) * inverse + ROOT) * inverse
