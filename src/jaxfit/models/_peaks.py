"""Peaks of one coordinate. Negative heights and areas are dips."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import erf, gammaln, log_ndtr

from jaxfit.models._model import POSITIVE, Model
from jaxfit.models._special import faddeeva
from jaxfit.models._start import grid, peak

FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in standard deviations
WIDER = np.array([0.5, 1.0, 1.7])  # widths that are tried, in those of the data


class Gaussian(Model):
    """height exp(-(x - center)² / (2 width²)).

    Parameters: `height`, the value at the centre; `center`; `width`, the standard
    deviation, in units of x.
    Derived: `fwhm`, the full width at half maximum, and `area`.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE}
    is_peak = True

    def function(self, x, height, center, width):
        return height * jnp.exp(-0.5 * ((x - center) / width) ** 2)

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        return grid(center=center[None], width=fwhm / FWHM * WIDER)

    def quantities(self, height, center, width):
        return {"fwhm": FWHM * width, "area": math.sqrt(2 * math.pi) * height * width}


class Lorentzian(Model):
    """height / (1 + ((x - center) / width)²).

    Parameters: `height`, the value at the centre; `center`; `width`, half the width at
    half maximum, in units of x.
    Derived: `fwhm`, the full width at half maximum, and `area`.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE}
    is_peak = True

    def function(self, x, height, center, width):
        return height / (1 + ((x - center) / width) ** 2)

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        return grid(center=center[None], width=fwhm / 2 * WIDER)

    def quantities(self, height, center, width):
        return {"fwhm": 2 * width, "area": math.pi * height * width}


class Voigt(Model):
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
    is_peak = True

    def function(self, x, area, center, sigma, gamma):
        scale = 1 / (math.sqrt(2) * sigma)
        along = (x - center) * scale
        height = jnp.broadcast_to(gamma * scale, jnp.shape(along))
        profile = faddeeva(lax.complex(along, jnp.asarray(height, along.dtype))).real
        return area * profile * scale / math.sqrt(math.pi)

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        sigma, gamma = np.array([0.2, 0.5, 0.9, 1.4]), np.array([0.1, 0.4, 0.8])
        found = grid(sigma=fwhm / FWHM * sigma, gamma=fwhm / 2 * gamma)
        return {"center": jnp.full(sigma.size * gamma.size, center), **found}

    def quantities(self, area, center, sigma, gamma):
        wide = FWHM * sigma
        fwhm = 1.0692 * gamma + jnp.sqrt(0.86639 * gamma**2 + wide**2)
        height = self.function(center, area, center, sigma, gamma)
        return {"height": height, "fwhm": fwhm}


class PseudoVoigt(Model):
    """height (fraction L + (1 - fraction) G), L and G of one width and height 1.

    Parameters: `height`, the value at the centre; `center`; `width`, half the width at
    half maximum, in units of x; `fraction` of the Lorentzian, from 0 to 1.
    Derived: `fwhm`, the full width at half maximum, and `area`.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE, "fraction": (0.0, 1.0)}
    is_peak = True

    def function(self, x, height, center, width, fraction):
        z = ((x - center) / width) ** 2
        gaussian = jnp.exp(-math.log(2) * z)
        return height * (fraction / (1 + z) + (1 - fraction) * gaussian)

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        found = grid(width=fwhm / 2 * WIDER, fraction=np.array([0.2, 0.8]))
        return {"center": jnp.full(2 * WIDER.size, center), **found}

    def quantities(self, height, center, width, fraction):
        unit = fraction * math.pi + (1 - fraction) * math.sqrt(math.pi / math.log(2))
        return {"fwhm": 2 * width, "area": height * width * unit}


class Moffat(Model):
    """height / (1 + ((x - center) / width)²)^exponent: a star, a beam with wings.

    Parameters: `height`, the value at the centre; `center`; `width`, in units of x;
    `exponent`, without unit: small for wide wings.
    Derived: `fwhm`, the full width at half maximum.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE, "exponent": POSITIVE}
    is_peak = True

    def function(self, x, height, center, width, exponent):
        return height * (1 + ((x - center) / width) ** 2) ** -exponent

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        exponent = np.array([1.0, 2.0, 4.0])[:, None]
        width = fwhm / 2 * WIDER / np.sqrt(2 ** (1 / exponent) - 1)
        return {
            "center": jnp.full(width.size, center),
            "width": width.ravel(),
            "exponent": np.repeat(exponent, WIDER.size),
        }

    def quantities(self, height, center, width, exponent):
        return {"fwhm": 2 * width * jnp.sqrt(2 ** (1 / exponent) - 1)}


class Pearson7(Model):
    """height (1 + ((x - center) / width)² (2^(1/exponent) - 1))^-exponent.

    Parameters: `height`, the value at the centre; `center`; `width`, half the width at
    half maximum, in units of x; `exponent`, without unit: 1 is a Lorentzian, and large
    ones come near a Gaussian.
    Derived: `fwhm`, the full width at half maximum, and `area` (for exponent > 1/2).
    """

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE, "exponent": (0.5, np.inf)}
    is_peak = True

    def function(self, x, height, center, width, exponent):
        steep = 2 ** (1 / exponent) - 1
        return height * (1 + steep * ((x - center) / width) ** 2) ** -exponent

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        found = grid(width=fwhm / 2 * WIDER, exponent=np.array([0.8, 1.5, 4.0]))
        return {"center": jnp.full(3 * WIDER.size, center), **found}

    def quantities(self, height, center, width, exponent):
        steep = 2 ** (1 / exponent) - 1
        beta = jnp.exp(gammaln(exponent - 0.5) - gammaln(exponent))
        area = height * width * jnp.sqrt(math.pi / steep) * beta
        return {"fwhm": 2 * width, "area": area}


class SkewedGaussian(Model):
    """A Gaussian times 1 + erf(skew (x - center) / (width √2)).

    Parameters: `area`; `center` and `width`, location and scale, in units of x, which
    are mean and standard deviation where the skew is zero; `skew`, without unit,
    positive for a tail to the right.
    Derived: `mean`, `deviation` (the standard deviation).
    """

    linear = ("area",)
    places = ("center",)
    limits = {"width": POSITIVE}
    is_peak = True

    def function(self, x, area, center, width, skew):
        z = (x - center) / width
        unit = jnp.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * width)
        return area * unit * (1 + erf(skew * z / math.sqrt(2)))

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        width = np.array([0.7, 1.0, 1.6])
        skew = np.array([-4.0, -1.5, 0.0, 1.5, 4.0])
        found = grid(width=fwhm / FWHM * width, skew=skew)
        return {"center": center - jnp.sign(found["skew"]) * 0.5 * found["width"]} | (
            found
        )

    def quantities(self, area, center, width, skew):
        delta = skew / jnp.sqrt(1 + skew**2)
        return {
            "mean": center + width * delta * math.sqrt(2 / math.pi),
            "deviation": width * jnp.sqrt(1 - 2 * delta**2 / math.pi),
        }


class ExponentialGaussian(Model):
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
    is_peak = True

    def function(self, x, area, center, width, rate):
        z = (x - center) / width
        k = rate * width
        return area * rate * jnp.exp(0.5 * k**2 - k * z + log_ndtr(z - k))

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        width = np.array([0.3, 0.5, 0.7, 1.0])
        tail = np.array([0.3, 0.8, 1.6, 3.0])  # its length, in widths of the data
        found = grid(width=fwhm / FWHM * width, rate=FWHM / fwhm / tail)
        shift = jnp.minimum(0.5 / found["rate"], 0.5 * fwhm)
        return {"center": center - shift, **found}

    def quantities(self, area, center, width, rate):
        return {
            "mean": center + 1 / rate,
            "deviation": jnp.sqrt(width**2 + 1 / rate**2),
        }


class Doniach(Model):
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
    is_peak = True

    def function(self, x, height, center, width, asymmetry):
        z = (x - center) / width
        angle = 0.5 * math.pi * asymmetry + (1 - asymmetry) * jnp.arctan(z)
        return height * jnp.cos(angle) * (1 + z**2) ** (-0.5 * (1 - asymmetry))

    def candidates(self, x, y):
        center, fwhm = peak(x, y)
        found = grid(
            width=fwhm / 2 * np.array([0.4, 0.7, 1.0, 1.5]),
            asymmetry=np.array([0.05, 0.2, 0.4]),
        )
        return {"center": center - found["asymmetry"] * found["width"], **found}


class BreitWigner(Model):
    """amplitude (q + z)² / (1 + z²), z = (x - center) / width: a Fano resonance.

    Parameters: `amplitude`, the value far away; `center`; `width`, half the full width
    of the resonance, in units of x; `q`, Fano's parameter, without unit.
    """

    linear = ("amplitude",)
    places = ("center",)
    limits = {"width": POSITIVE}

    def function(self, x, amplitude, center, width, q):
        z = (x - center) / width
        return amplitude * (q + z) ** 2 / (1 + z**2)

    def candidates(self, x, y):
        # (q + z)² / (1 + z²) = 1 + (q² - 1 + 2 q z) / (1 + z²): a peak and its slope
        edge = 0.5 * (
            jnp.mean(y[: len(y) // 8 + 1]) + jnp.mean(y[-(len(y) // 8) - 1 :])
        )
        center, fwhm = peak(x, y - edge)
        found = grid(
            shift=np.array([-0.6, -0.3, 0.0, 0.3, 0.6]),
            width=fwhm / 2 * np.array([0.35, 0.6, 1.0, 1.6]),
            q=np.array([-6, -2.5, -1.2, -0.5, 0.0, 0.5, 1.2, 2.5, 6]),
        )
        return {
            "center": center + found["shift"] * found["width"],
            "width": found["width"],
            "q": found["q"],
        }
