"""Peaks of one coordinate. Negative heights and areas are dips."""

import math
from typing import Any

import numpy as np

from jaxfit._numpy.either import (
    Real,
    Reals,
    Scalar,
    Values,
    complex_of,
    erf,
    gammaln,
    log_ndtr,
    xp,
)
from jaxfit._numpy.faddeeva import faddeeva
from jaxfit.models._binned import normal_mass
from jaxfit.models._model import POSITIVE, Candidates, Model
from jaxfit.models._place import Peak
from jaxfit.models._projection import grid, largest_hump

FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in standard deviations


class Gaussian(Peak):
    """height exp(-(x - center)² / (2 width²)).

    Parameters: `height`, the value at the centre; `center`; `width`, the standard
    deviation, in units of x.
    Derived: `fwhm`, the full width at half maximum, and `area`.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE}

    def function(self, x: Real, height: Real, center: Real, width: Real) -> Real:
        return height * xp.exp(-0.5 * ((x - center) / width) ** 2)

    def integral(
        self, lower: Real, upper: Real, height: Real, center: Real, width: Real
    ) -> Real:
        scale = math.sqrt(2) * width
        a, b = (lower - center) / scale, (upper - center) / scale
        return height * scale * normal_mass(a, b)

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        return {"center": center[None], "width": fwhm[None] / FWHM}

    def quantities(self, height: Real, center: Real, width: Real) -> Reals:
        return {"fwhm": FWHM * width, "area": math.sqrt(2 * math.pi) * height * width}


class Lorentzian(Peak):
    """height / (1 + ((x - center) / width)²).

    Parameters: `height`, the value at the centre; `center`; `width`, half the width at
    half maximum, in units of x.
    Derived: `fwhm`, the full width at half maximum, and `area`.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE}

    def function(self, x: Real, height: Real, center: Real, width: Real) -> Real:
        return height / (1 + ((x - center) / width) ** 2)

    def integral(
        self, lower: Real, upper: Real, height: Real, center: Real, width: Real
    ) -> Real:
        a, b = (lower - center) / width, (upper - center) / width
        return height * width * xp.arctan2(b - a, 1 + a * b)  # arctan b - arctan a

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        return {"center": center[None], "width": fwhm[None] / 2}

    def quantities(self, height: Real, center: Real, width: Real) -> Reals:
        return {"fwhm": 2 * width, "area": math.pi * height * width}


class Voigt(Peak):
    """A Lorentzian seen through a Gaussian: area Re w(z) / (sigma √(2π)).

    Here z = (x - center + i gamma) / (sigma √2), and w is the Faddeeva function.

    Parameters: `area`; `center`; `sigma`, the standard deviation of the Gaussian;
    `gamma`, half the width at half maximum of the Lorentzian; both in units of x.
    Derived: `height`; `fwhm`, within 0.03 % (Olivero and Longbothum, J. Quant.
    Spectrosc. Radiat. Transfer 17, 1977).
    """

    linear = ("area",)
    places = ("center",)
    limits = {"sigma": POSITIVE, "gamma": POSITIVE}

    def function(
        self, x: Real, area: Real, center: Real, sigma: Real, gamma: Real
    ) -> Real:
        scale = 1 / (math.sqrt(2) * sigma)
        along: Any = (x - center) * scale
        height = xp.broadcast_to(gamma * scale, xp.shape(along))
        profile = faddeeva(complex_of(along, xp.asarray(height, along.dtype))).real
        return area * profile * scale / math.sqrt(math.pi)

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        sigma, gamma = np.array([(0.77, 0.4), (0.95, 0.1), (0.4, 0.8)]).T
        same = xp.full(len(sigma), center)
        return {"center": same, "sigma": fwhm / FWHM * sigma, "gamma": fwhm / 2 * gamma}

    def quantities(self, area: Real, center: Real, sigma: Real, gamma: Real) -> Reals:
        wide = FWHM * sigma
        fwhm = 1.0692 * gamma + xp.sqrt(0.86639 * gamma**2 + wide**2)
        height = self.function(center, area, center, sigma, gamma)
        return {"height": height, "fwhm": fwhm}


class PseudoVoigt(Peak):
    """height (fraction L + (1 - fraction) G), L and G of one width and height 1.

    Parameters: `height`, the value at the centre; `center`; `width`, half the width at
    half maximum, in units of x; `fraction` of the Lorentzian, from 0 to 1.
    Derived: `fwhm`, the full width at half maximum, and `area`.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE, "fraction": (0.0, 1.0)}

    def function(
        self, x: Real, height: Real, center: Real, width: Real, fraction: Real
    ) -> Real:
        z = ((x - center) / width) ** 2
        gaussian = xp.exp(-math.log(2) * z)
        return height * (fraction / (1 + z) + (1 - fraction) * gaussian)

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        shapes = grid(width=fwhm[None] / 2, fraction=np.array([0.5, 0.15, 0.85]))
        return {"center": xp.full(3, center), **shapes}

    def quantities(
        self, height: Real, center: Real, width: Real, fraction: Real
    ) -> Reals:
        unit = fraction * math.pi + (1 - fraction) * math.sqrt(math.pi / math.log(2))
        return {"fwhm": 2 * width, "area": height * width * unit}


class Moffat(Peak):
    """height / (1 + ((x - center) / width)²)^exponent: a star, a beam with wings.

    Parameters: `height`, the value at the centre; `center`; `width`, in units of x;
    `exponent`, without unit: small for wide wings.
    Derived: `fwhm`, the full width at half maximum.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE, "exponent": POSITIVE}

    def function(
        self, x: Real, height: Real, center: Real, width: Real, exponent: Real
    ) -> Real:
        return height * (1 + ((x - center) / width) ** 2) ** -exponent

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        exponent = np.array([2.0, 1.0, 4.0])
        width = fwhm / 2 / np.sqrt(2 ** (1 / exponent) - 1)
        return {"center": xp.full(3, center), "width": width, "exponent": exponent}

    def quantities(
        self, height: Real, center: Real, width: Real, exponent: Real
    ) -> Reals:
        return {"fwhm": 2 * width * xp.sqrt(2 ** (1 / exponent) - 1)}


class Pearson7(Peak):
    """height (1 + ((x - center) / width)² (2^(1/exponent) - 1))^-exponent.

    Parameters: `height`, the value at the centre; `center`; `width`, half the width at
    half maximum, in units of x; `exponent`, without unit: 1 is a Lorentzian, and large
    ones come near a Gaussian.
    Derived: `fwhm`, the full width at half maximum, and `area` (for exponent > 1/2).
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE, "exponent": (0.5, np.inf)}

    def function(
        self, x: Real, height: Real, center: Real, width: Real, exponent: Real
    ) -> Real:
        steep = 2 ** (1 / exponent) - 1
        return height * (1 + steep * ((x - center) / width) ** 2) ** -exponent

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        shapes = grid(width=fwhm[None] / 2, exponent=np.array([1.5, 0.8, 4.0]))
        return {"center": xp.full(3, center), **shapes}

    def quantities(
        self, height: Real, center: Real, width: Real, exponent: Real
    ) -> Reals:
        steep = 2 ** (1 / exponent) - 1
        beta = xp.exp(gammaln(exponent - 0.5) - gammaln(exponent))
        area = height * width * xp.sqrt(math.pi / steep) * beta
        return {"fwhm": 2 * width, "area": area}


class SkewedGaussian(Peak):
    """A Gaussian times 1 + erf(skew (x - center) / (width √2)).

    Parameters: `area`; `center` and `width`, location and scale, in units of x, which
    are mean and standard deviation where the skew is zero; `skew`, without unit,
    positive for a tail to the right.
    Derived: `mean`, `deviation` (the standard deviation).
    """

    linear = ("area",)
    places = ("center",)
    limits = {"width": POSITIVE}

    def function(
        self, x: Real, area: Real, center: Real, width: Real, skew: Real
    ) -> Real:
        z = (x - center) / width
        unit = xp.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * width)
        return area * unit * (1 + erf(skew * z / math.sqrt(2)))

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        # none without skew, where the derivatives by centre and skew are parallel
        skew = np.array([0.7, -0.7, 1.5, -1.5, 4.0, -4.0])
        wider = np.array([1.1, 1.1, 1.25, 1.25, 1.55, 1.55])
        width = fwhm / FWHM * wider
        return {
            "center": center - np.sign(skew) * 0.5 * width,
            "width": width,
            "skew": skew,
        }

    def quantities(self, area: Real, center: Real, width: Real, skew: Real) -> Reals:
        delta = skew / xp.sqrt(1 + skew**2)
        return {
            "mean": center + width * delta * math.sqrt(2 / math.pi),
            "deviation": width * xp.sqrt(1 - 2 * delta**2 / math.pi),
        }


class ExponentialGaussian(Peak):
    """A Gaussian with an exponential tail to the right: chromatography, detectors.

    area rate exp(rate (center - x) + rate² width² / 2) Φ((x - center) / width
    - rate width), Φ the normal distribution.

    Parameters: `area`; `center` and `width`, mean and standard deviation of the
    Gaussian, in units of x; `rate` of the tail, per x.
    Derived: `mean`, `deviation` (the standard deviation).
    """

    linear = ("area",)
    places = ("center",)
    limits = {"width": POSITIVE, "rate": POSITIVE}

    def function(
        self, x: Real, area: Real, center: Real, width: Real, rate: Real
    ) -> Real:
        z = (x - center) / width
        k = rate * width
        return area * rate * xp.exp(0.5 * k**2 - k * z + log_ndtr(z - k))

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        sigma = np.array([0.8, 0.92, 0.5, 0.25])  # of the Gaussian, in widths
        tail = np.array([0.7, 0.35, 1.3, 1.6])  # its length likewise
        width = fwhm / FWHM * sigma
        return {
            "center": center - 0.6 * np.minimum(tail, 0.9) * fwhm / FWHM,
            "width": width,
            "rate": FWHM / fwhm / tail,
        }

    def quantities(self, area: Real, center: Real, width: Real, rate: Real) -> Reals:
        return {
            "mean": center + 1 / rate,
            "deviation": xp.sqrt(width**2 + 1 / rate**2),
        }


class Doniach(Peak):
    """A metal's photoemission line (Doniach and Sunjic, J. Phys. C 3, 1970).

    height cos(π a / 2 + (1 - a) atan(z)) / (1 + z²)^((1 - a) / 2), z = (x - center) /
    width, a the asymmetry.

    Parameters: `height`, that of the Lorentzian which it is for a = 0; `center`;
    `width`, half that Lorentzian's width at half maximum, in units of x; `asymmetry`,
    from 0 to 1, with the tail to the right.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE, "asymmetry": (0.0, 1.0)}

    def function(
        self, x: Real, height: Real, center: Real, width: Real, asymmetry: Real
    ) -> Real:
        z = (x - center) / width
        angle = 0.5 * math.pi * asymmetry + (1 - asymmetry) * xp.arctan(z)
        return height * xp.cos(angle) * (1 + z**2) ** (-0.5 * (1 - asymmetry))

    def shaped(self, center: Scalar, fwhm: Scalar) -> Candidates:
        asymmetry = np.array([0.1, 0.02, 0.3])
        width = fwhm / 2 * np.array([0.95, 1.0, 0.8])
        return {
            "center": center - asymmetry * width,
            "width": width,
            "asymmetry": xp.asarray(asymmetry, width.dtype),
        }


class BreitWigner(Model):
    """amplitude (q + z)² / (1 + z²), z = (x - center) / width: a Fano resonance.

    Parameters: `amplitude`, the value far away; `center`; `width`, half the full width
    of the resonance, in units of x; `q`, Fano's parameter, without unit.
    """

    linear = ("amplitude",)
    places = ("center",)
    limits = {"width": POSITIVE}

    def function(
        self, x: Real, amplitude: Real, center: Real, width: Real, q: Real
    ) -> Real:
        z = (x - center) / width
        return amplitude * (q + z) ** 2 / (1 + z**2)

    def candidates(self, x: Values, y: Values) -> Candidates:
        # (q + z)² / (1 + z²) = 1 + (q² - 1 + 2 q z) / (1 + z²): a peak and its slope
        edge = 0.5 * (xp.mean(y[: len(y) // 8 + 1]) + xp.mean(y[-(len(y) // 8) - 1 :]))
        hump = largest_hump(x, y - edge)
        shapes = grid(
            shift=np.array([-0.6, -0.3, 0.0, 0.3, 0.6]),
            width=hump.fwhm / 2 * np.array([0.35, 0.6, 1.0, 1.6]),
            q=np.array([-6, -2.5, -1.2, -0.5, 0.0, 0.5, 1.2, 2.5, 6]),
        )
        return {
            "center": hump.center + shapes["shift"] * shapes["width"],
            "width": shapes["width"],
            "q": shapes["q"],
        }
