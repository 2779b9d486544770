"""Oscillations, resonances and steps."""

import math
from typing import ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from jaxfit.models._either import each, erf, rfft, sums_at, xp
from jaxfit.models._guess import Remainder, best_of, extent, grid, peak, with_known
from jaxfit.models._model import POSITIVE, Model


def turned(phase, frequency, origin):
    """The phase at an origin: less the whole turns that lie between."""
    turns = frequency * origin
    return phase + 2 * math.pi * (turns - xp.round(turns))


class Sine(Model):
    """amplitude sin(2π frequency x + phase).

    Parameters: `amplitude`, half the distance from peak to peak; `frequency`, cycles
    per x; `phase`, radians at x = 0. Amplitude and frequency are not negative.
    Derived: `period` = 1 / frequency.
    """

    linear = ("amplitude",)
    limits = {"amplitude": POSITIVE, "frequency": POSITIVE}

    def function(self, x, amplitude, frequency, phase):
        return amplitude * xp.sin(2 * math.pi * frequency * x + phase)

    def search(self, rest, known):
        return _oscillation(self, rest, known, {})

    def about(self, origin, amplitude, frequency, phase):
        return {"phase": turned(phase, frequency, origin)}

    def quantities(self, amplitude, frequency, phase):
        return {"period": 1 / frequency}


class DampedSine(Model):
    """amplitude exp(-rate x) sin(2π frequency x + phase).

    Parameters: `amplitude`, that at x = 0; `frequency`, cycles per x; `phase`, radians
    at x = 0; `rate` of the damping, per x. Amplitude and frequency are not negative.
    Derived: `period`; `quality` = π frequency / rate.
    """

    linear = ("amplitude",)
    limits = {"amplitude": POSITIVE, "frequency": POSITIVE}
    scales = ("amplitude",)

    def function(self, x, amplitude, frequency, phase, rate):
        wave = xp.sin(2 * math.pi * frequency * x + phase)
        return amplitude * xp.exp(-rate * x) * wave

    def search(self, rest, known):
        rates = np.array([0, 0.6, 1.2, 2.4, 5, 10, 20, 40]) / extent(rest.x)[1]
        return _oscillation(self, rest, known, {"rate": rates})

    def about(self, origin, amplitude, frequency, phase, rate):
        return {
            "amplitude": amplitude * xp.exp(-rate * origin),
            "phase": turned(phase, frequency, origin),
        }

    def quantities(self, amplitude, frequency, phase, rate):
        return {"period": 1 / frequency, "quality": math.pi * frequency / rate}


def _oscillation(model, rest: Remainder, known, damping) -> dict[str, Array]:
    """The frequency, and the rate of damping if any, that explain most of the data.

    Amplitude and phase are those of a cosine and a sine, two linear columns. Where
    these stand beside others, all are solved for together, at every frequency.

    Args:
        damping: rates (R,) to try by the name of their parameter, or nothing.
    """
    low, span = extent(rest.x)
    t = rest.x - low

    def columns(x, frequency, rate=0.0):
        turn = 2 * math.pi * frequency * (x - low)
        decay = xp.exp(-rate * (x - low))
        return [decay * xp.cos(turn), decay * xp.sin(turn)]

    rates = with_known(damping, known).get("rate", xp.zeros(1))
    factors = rest.factor * xp.exp(-rates[:, None] * t)
    gains = each(factors, lambda f: _spectrum(rest._replace(factor=f)), factors)
    best = xp.argmax(gains)
    frequency = (best % gains.shape[1]).astype(t.dtype) / (SPECTRUM * span)
    near = {"frequency": frequency + np.arange(-4.0, 5.0) / (8 * SPECTRUM * span)}
    if damping:
        rate = rates[best // gains.shape[1]]
        near["rate"] = xp.concatenate([rate * np.geomspace(0.5, 2, 5), rates[:1]])
    near = with_known(grid(**near), known)
    chosen, (along, across) = best_of(columns, rest, near)
    start = xp.arctan2(along, across) - 2 * math.pi * chosen["frequency"] * low
    phase = xp.asarray(known.get("phase", xp.arctan2(xp.sin(start), xp.cos(start))))
    one = {name: value[None] for name, value in {**chosen, "phase": phase}.items()}
    others, linear = best_of(model.columns, rest, one)
    return {**others, "amplitude": linear[0]}


SPECTRUM = 4  # frequencies for each that the range of x resolves


def _spectrum(rest: Remainder) -> Float[Array, " k"]:
    """What a cosine and a sine explain of the data, for a range of frequencies.

    Lomb's periodogram (Astrophys. Space Sci. 39, 1976) beside other columns: the sum of
    squares that both take together, with the others' coefficients free. All sums over
    the points are Fourier transforms of points moved to a grid, sixteen to the shortest
    period (Press and Rybicki, Astrophys. J. 338, 1989, do so with more care).
    """
    x, factor = rest.x, rest.factor
    low, span = extent(x)
    m = len(x)
    each = max(m - 1, 1)  # points as even as these lie on the grid
    length = 4 * SPECTRUM * each
    place = xp.round((x - low) / span * (4 * each)).astype(int)
    rows = xp.concatenate([(factor * rest.orthogonal)[None], factor * rest.basis])
    rows = xp.concatenate([rows, (factor**2)[None]])
    transform = rfft(sums_at(place, rows, length))
    k = np.arange(SPECTRUM // 2 * each + 1)
    image, others, double = transform[0, k], transform[1:-1, k], transform[-1, 2 * k]
    total = transform[-1, 0].real
    cosines = 0.5 * (total + double.real) - xp.sum(others.real**2, axis=0)
    sines = 0.5 * (total - double.real) - xp.sum(others.imag**2, axis=0)
    mixed = 0.5 * double.imag - xp.sum(others.real * others.imag, axis=0)
    cosines, sines = (v + 1e-6 * total for v in (cosines, sines))
    determinant = cosines * sines - mixed**2
    a, b = image.real, image.imag
    gain = (sines * a**2 - 2 * mixed * a * b + cosines * b**2) / determinant
    fine = (determinant > 0) & (k >= SPECTRUM // 2)  # half a cycle at least
    return xp.where(fine, gain, 0)


class DampedOscillator(Model):
    """amplitude / √((1 - (x / center)²)² + (2 damping x / center)²): a resonance.

    The amplitude of a driven oscillator against the frequency x of the drive.

    Parameters: `amplitude`, the response at x = 0; `center`, the natural frequency, in
    units of x; `damping`, the damping ratio, without unit.
    Derived: `quality` = 1 / (2 damping); `height`, the response at x = center.
    """

    linear = ("amplitude",)
    limits = {"center": POSITIVE, "damping": POSITIVE}

    def function(self, x, amplitude, center, damping):
        ratio = x / center
        squared = (1 - ratio**2) ** 2 + (2 * damping * ratio) ** 2
        return amplitude / xp.sqrt(squared)

    def candidates(self, x, y):
        top, fwhm = peak(x, y)
        ratio = fwhm / xp.maximum(xp.abs(top), 1e-12)
        found = grid(
            center=xp.abs(top) * np.array([0.98, 1.0, 1.02, 1.1]),
            damping=ratio * np.array([0.1, 0.17, 0.29, 0.5, 1.0]),
        )
        return found

    def quantities(self, amplitude, center, damping):
        return {"quality": 0.5 / damping, "height": 0.5 * amplitude / damping}


def _places(x):
    """Where a step may be: every sixteenth of the range."""
    low, span = extent(x)
    return low + span * np.linspace(0.03, 0.97, 17), span


class Logistic(Model):
    """height / (1 + exp(-rate (x - center))): growth up to a limit.

    Parameters: `height`, the upper limit; `center`, the x of half the height; `rate`,
    per x, negative for a falling curve.
    """

    linear = ("height",)
    places = ("center",)

    def function(self, x, height, center, rate):
        return height * 0.5 * (1 + xp.tanh(0.5 * rate * (x - center)))

    def candidates(self, x, y):
        places, span = _places(x)
        rates = np.array([2.0, 4.0, 8.0, 16.0, 50.0, 150.0])
        return grid(center=places, rate=np.concatenate([-rates, rates]) / span)


class Gompertz(Model):
    """height exp(-exp(-rate (x - center))): growth that slows down early.

    Parameters: `height`, the upper limit; `center`, the x of the fastest growth, where
    the value is height / e; `rate`, per x.
    Derived: `fastest`, the slope at the centre.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"rate": POSITIVE}

    def function(self, x, height, center, rate):
        return height * xp.exp(-xp.exp(xp.minimum(-rate * (x - center), 500.0)))

    def candidates(self, x, y):
        places, span = _places(x)
        rates = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 50.0, 150.0])
        return grid(center=places, rate=rates / span)

    def quantities(self, height, center, rate):
        return {"fastest": height * rate / math.e}


class Step(Model):
    """height times a step from 0 to 1 at the center.

    Parameters: `height`, negative for a step down; `center`; `width`, the scale of the
    transition, in units of x.

    Args:
        form: "erf", a Gaussian's integral, (1 + erf(z / √2)) / 2 with z = (x - center)
            / width; "arctan", a Lorentzian's, 1/2 + atan(z)/π; or "logistic",
            1 / (1 + exp(-z)).
    """

    form: str = eqx.field(default="erf", static=True)

    linear = ("height",)
    places = ("center",)
    limits = {"width": POSITIVE}

    _FORMS: ClassVar = {
        "erf": lambda z: 0.5 * (1 + erf(z / math.sqrt(2))),
        "arctan": lambda z: 0.5 + xp.arctan(z) / math.pi,
        "logistic": lambda z: 0.5 * (1 + xp.tanh(0.5 * z)),
    }

    def __check_init__(self):
        if self.form not in self._FORMS:
            raise ValueError(
                f"form is {self.form!r}; give 'erf', 'arctan' or 'logistic'."
            )

    def function(self, x, height, center, width):
        return height * self._FORMS[self.form]((x - center) / width)

    def candidates(self, x, y):
        places, span = _places(x)
        return grid(center=places, width=span * np.array([0.004, 0.015, 0.05, 0.15]))
