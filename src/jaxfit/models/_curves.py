"""Backgrounds, decays, power laws, and curves of kinetics and thermodynamics."""

import math
from collections.abc import Sequence

import equinox as eqx
import numpy as np

from jaxfit._numpy.either import Coordinates, Real, Reals, Values, xp
from jaxfit.models._binned import by_nodes, decayed
from jaxfit.models._model import POSITIVE, Candidates, Model
from jaxfit.models._projection import extent, grid

GAS_CONSTANT = 8.31446261815324  # J / (mol K), exact since 2019


def power(x: Real, exponent: Real) -> Real:
    """x^exponent for x > 0 and 0 elsewhere, with derivatives that are finite."""
    positive = x > 0
    return xp.where(positive, xp.where(positive, x, 1) ** exponent, 0)


def first(x: Coordinates) -> Real:
    """The first coordinate."""
    return x[0] if isinstance(x, (tuple, list)) else x


def taylor_shift(coefficients: Sequence[Real], origin: Real) -> list[Real]:
    """The coefficients of p(x + origin), ascending like those of p."""
    shifted = list(coefficients)
    for k in range(len(shifted) - 1):
        for i in range(len(shifted) - 2, k - 1, -1):
            shifted[i] = shifted[i] + origin * shifted[i + 1]
    return shifted


class Constant(Model):
    """c: the same everywhere, in any number of dimensions.

    Parameters: `c`, the value, in units of y.
    """

    linear = ("c",)

    def function(self, x: Coordinates, c: Real) -> Real:
        return c * xp.ones_like(first(x))

    def integral(self, lower: Real, upper: Real, c: Real) -> Real:
        return c * (upper - lower)

    def about(self, origin: Real, c: Real) -> Reals:
        return {}


class Linear(Model):
    """slope x + intercept.

    Parameters: `slope`, y per x; `intercept`, the value at x = 0.
    """

    linear = ("slope", "intercept")

    def function(self, x: Real, slope: Real, intercept: Real) -> Real:
        return slope * x + intercept

    def integral(self, lower: Real, upper: Real, slope: Real, intercept: Real) -> Real:
        return (slope * (0.5 * (lower + upper)) + intercept) * (upper - lower)

    def about(self, origin: Real, slope: Real, intercept: Real) -> Reals:
        return {"intercept": intercept + slope * origin}

    def quantities(self, slope: Real, intercept: Real) -> Reals:
        return self.quantities_about(0.0, slope, intercept)

    def quantities_about(self, origin: Real, slope: Real, intercept: Real) -> Reals:
        return {"root": origin - intercept / slope}


class Quadratic(Model):
    """a x² + b x + c.

    Parameters: `a`, y per x²; `b`, y per x; `c`, the value at x = 0.
    Derived: `vertex`, the x of the extremum, and its value `extremum`.
    """

    linear = ("a", "b", "c")

    def function(self, x: Real, a: Real, b: Real, c: Real) -> Real:
        return (a * x + b) * x + c

    def about(self, origin: Real, a: Real, b: Real, c: Real) -> Reals:
        c, b, _ = taylor_shift([c, b, a], origin)
        return {"b": b, "c": c}

    def quantities(self, a: Real, b: Real, c: Real) -> Reals:
        return self.quantities_about(0.0, a, b, c)

    def quantities_about(self, origin: Real, a: Real, b: Real, c: Real) -> Reals:
        return {"vertex": origin - b / (2 * a), "extremum": c - b**2 / (4 * a)}


class Polynomial(Model):
    """c0 + c1 x + c2 x² + ... up to a degree.

    Parameters: `c0`, `c1`, ..., the coefficients, ck in y per x^k.

    Args:
        degree: the highest power, from 0 to 20.
    """

    degree: int = eqx.field(default=3, static=True)

    def __check_init__(self) -> None:
        if not (isinstance(self.degree, int) and 0 <= self.degree <= 20):
            raise ValueError(f"degree is {self.degree!r}; give an integer in 0..20.")

    @property
    def own_names(self) -> tuple[str, ...]:
        return tuple(f"c{k}" for k in range(self.degree + 1))

    @property
    def linear(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.own_names

    def function(self, x: Real, **coefficients: Real) -> Real:
        value = xp.zeros_like(x)
        for name in reversed(self.own_names):
            value = value * x + coefficients[name]
        return value

    def integral(self, lower: Real, upper: Real, **coefficients: Real) -> Real:
        def values(x: Real) -> Real:
            return self.function(x, **coefficients)

        return by_nodes(values, lower, upper, self.degree // 2 + 1)  # exact

    def about(self, origin: Real, **coefficients: Real) -> Reals:
        shifted = taylor_shift([coefficients[n] for n in self.own_names], origin)
        return dict(zip(self.own_names[:-1], shifted, strict=False))


class Exponential(Model):
    """amplitude exp(-rate x): a decay, or growth where the rate is negative.

    Parameters: `amplitude`, the value at x = 0; `rate`, per x.
    Derived: `half_life` = ln 2 / rate, `lifetime` = 1 / rate.
    """

    linear = ("amplitude",)
    scales = ("amplitude",)

    def function(self, x: Real, amplitude: Real, rate: Real) -> Real:
        return amplitude * xp.exp(-rate * x)

    def integral(self, lower: Real, upper: Real, amplitude: Real, rate: Real) -> Real:
        return amplitude * xp.exp(-rate * lower) * decayed(rate, upper - lower)

    def candidates(self, x: Values, y: Values) -> Candidates:
        rates = np.geomspace(0.15, 60, 14)
        return {"rate": np.concatenate([-rates[:10], rates]) / extent(x).span}

    def about(self, origin: Real, amplitude: Real, rate: Real) -> Reals:
        return {"amplitude": amplitude * xp.exp(-rate * origin)}

    def quantities(self, amplitude: Real, rate: Real) -> Reals:
        return {"half_life": math.log(2) / rate, "lifetime": 1 / rate}


class BiExponential(Model):
    """amplitude1 exp(-rate1 x) + amplitude2 exp(-rate2 x): two decays.

    Parameters: `amplitude1`, `amplitude2`, values at x = 0; `rate1` and `rate2`, per x,
    not negative. A start has the faster decay first.
    Derived: `half_life1`, `half_life2`, and `fraction1`, the first amplitude's part.
    """

    linear = ("amplitude1", "amplitude2")
    scales = ("amplitude1", "amplitude2")
    limits = {"rate1": POSITIVE, "rate2": POSITIVE}

    def function(
        self, x: Real, amplitude1: Real, rate1: Real, amplitude2: Real, rate2: Real
    ) -> Real:
        return amplitude1 * xp.exp(-rate1 * x) + amplitude2 * xp.exp(-rate2 * x)

    def candidates(self, x: Values, y: Values) -> Candidates:
        rates = np.geomspace(0.2, 80, 12)
        fast, slow = np.meshgrid(rates, rates)
        pairs = fast > 1.5 * slow
        span = extent(x).span
        return {"rate1": fast[pairs] / span, "rate2": slow[pairs] / span}

    def about(
        self, origin: Real, amplitude1: Real, rate1: Real, amplitude2: Real, rate2: Real
    ) -> Reals:
        return {
            "amplitude1": amplitude1 * xp.exp(-rate1 * origin),
            "amplitude2": amplitude2 * xp.exp(-rate2 * origin),
        }

    def quantities(
        self, amplitude1: Real, rate1: Real, amplitude2: Real, rate2: Real
    ) -> Reals:
        return {
            "half_life1": math.log(2) / rate1,
            "half_life2": math.log(2) / rate2,
            "fraction1": amplitude1 / (amplitude1 + amplitude2),
        }


class StretchedExponential(Model):
    """amplitude exp(-(x / lifetime)^exponent), of Kohlrausch, Williams and Watts.

    Parameters: `amplitude`, the value at x = 0; `lifetime`, the x at which 1/e is left;
    `exponent`, without unit: below 1 for a spread of rates.
    Derived: `half_life`.
    """

    linear = ("amplitude",)
    limits = {"lifetime": POSITIVE, "exponent": POSITIVE}

    def function(
        self, x: Real, amplitude: Real, lifetime: Real, exponent: Real
    ) -> Real:
        return amplitude * xp.exp(-power(x / lifetime, exponent))

    def candidates(self, x: Values, y: Values) -> Candidates:
        return grid(
            lifetime=extent(x).span * np.geomspace(0.01, 5, 14),
            exponent=np.array([0.4, 0.6, 0.8, 1.0, 1.4, 2.0]),
        )

    def quantities(self, amplitude: Real, lifetime: Real, exponent: Real) -> Reals:
        return {"half_life": lifetime * math.log(2) ** (1 / exponent)}


class PowerLaw(Model):
    """amplitude x^exponent, for x > 0.

    Parameters: `amplitude`, the value at x = 1; `exponent`, without unit.
    """

    linear = ("amplitude",)

    def function(self, x: Real, amplitude: Real, exponent: Real) -> Real:
        return amplitude * power(x, exponent)

    def candidates(self, x: Values, y: Values) -> Candidates:
        return {"exponent": np.concatenate([np.arange(-6, 0), np.arange(1, 7)]) * 0.75}


class MichaelisMenten(Model):
    """maximum x / (constant + x): the rate of an enzyme against its substrate.

    Parameters: `maximum`, the rate at saturation (Vmax); `constant`, the concentration
    x of half that rate (Km).
    """

    linear = ("maximum",)
    limits = {"constant": POSITIVE}

    def function(self, x: Real, maximum: Real, constant: Real) -> Real:
        return maximum * x / (constant + x)

    def candidates(self, x: Values, y: Values) -> Candidates:
        return {"constant": xp.max(xp.abs(x)) * np.geomspace(1e-3, 30, 24)}

    def quantities(self, maximum: Real, constant: Real) -> Reals:
        return {"efficiency": maximum / constant}


class Hill(Model):
    """maximum x^exponent / (constant^exponent + x^exponent): cooperative binding.

    Parameters: `maximum`, the value at saturation; `constant`, the concentration x of
    half of it; `exponent`, the Hill coefficient, without unit.
    """

    linear = ("maximum",)
    limits = {"constant": POSITIVE, "exponent": POSITIVE}

    def function(self, x: Real, maximum: Real, constant: Real, exponent: Real) -> Real:
        return maximum * rise(x / constant, exponent)

    def candidates(self, x: Values, y: Values) -> Candidates:
        return grid(
            constant=xp.max(xp.abs(x)) * np.geomspace(1e-3, 10, 16),
            exponent=np.array([0.5, 1.0, 2.0, 4.0, 8.0]),
        )


class FourParameterLogistic(Model):
    """bottom + (top - bottom) / (1 + (ec50 / x)^slope): dose and response.

    Parameters: `bottom`, the response without a dose; `top`, that at large doses, which
    is the lower one for an inhibitor; `ec50`, the dose half way between; `slope`, the
    Hill slope, without unit, positive.
    Derived: `pec50` = -log10(ec50), `span` = top - bottom.
    """

    linear = ("bottom", "top")
    limits = {"ec50": POSITIVE, "slope": POSITIVE}

    def function(
        self, x: Real, bottom: Real, top: Real, ec50: Real, slope: Real
    ) -> Real:
        part = rise(x / ec50, slope)
        return bottom * (1 - part) + top * part

    def candidates(self, x: Values, y: Values) -> Candidates:
        dose = xp.where(x > 0, x, np.inf)
        least, most = xp.min(dose), xp.max(x)
        part = np.linspace(0.02, 0.98, 16)
        return grid(
            ec50=xp.exp(xp.log(least) * (1 - part) + xp.log(most) * part),
            slope=np.array([0.5, 1.0, 2.0, 4.0, 8.0]),
        )

    def quantities(self, bottom: Real, top: Real, ec50: Real, slope: Real) -> Reals:
        return {"pec50": -xp.log10(ec50), "span": top - bottom}


def rise(ratio: Real, exponent: Real) -> Real:
    """ratio^n / (1 + ratio^n), from 0 at ratio <= 0 to 1, with finite derivatives."""
    positive = ratio > 0
    u = exponent * xp.log(xp.where(positive, ratio, 1))
    return xp.where(positive, 0.5 * (1 + xp.tanh(0.5 * u)), 0)


class Arrhenius(Model):
    """prefactor exp(-energy / (R x)): a rate against the temperature x in kelvin.

    Parameters: `prefactor`, in units of y; `energy`, the activation energy in J/mol.
    """

    linear = ("prefactor",)
    limits = {"prefactor": POSITIVE}

    def function(self, x: Real, prefactor: Real, energy: Real) -> Real:
        return prefactor * xp.exp(-energy / (GAS_CONSTANT * x))

    def candidates(self, x: Values, y: Values) -> Candidates:
        middle = GAS_CONSTANT * xp.mean(x)
        steps = np.geomspace(0.2, 60, 40)
        return {"energy": middle * np.concatenate([-steps[:16], steps])}
