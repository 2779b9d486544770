"""Oscillations, resonances and steps."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

from jaxfit.models._model import POSITIVE, Model
from jaxfit.models._start import extent, frequency, grid, peak

PHASES = np.arange(-5, 7) * (math.pi / 6)


def turned(phase, frequency, origin):
    """The phase at an origin: less the whole turns that lie between."""
    turns = frequency * origin
    return phase + 2 * math.pi * (turns - jnp.round(turns))


class Sine(Model):
    """amplitude sin(2π frequency x + phase).

    Parameters: `amplitude`, half the distance from peak to peak; `frequency`, cycles
    per x; `phase`, radians at x = 0. Amplitude and frequency are not negative.
    Derived: `period` = 1 / frequency.
    """

    linear = ("amplitude",)
    limits = {"amplitude": POSITIVE, "frequency": POSITIVE}

    def function(self, x, amplitude, frequency, phase):
        return amplitude * jnp.sin(2 * math.pi * frequency * x + phase)

    def candidates(self, x, y):
        return _oscillation(x, y)

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
        wave = jnp.sin(2 * math.pi * frequency * x + phase)
        return amplitude * jnp.exp(-rate * x) * wave

    def candidates(self, x, y):
        return _oscillation(x, y, rate=np.geomspace(0.3, 30, 7) / extent(x)[1])

    def about(self, origin, amplitude, frequency, phase, rate):
        return {
            "amplitude": amplitude * jnp.exp(-rate * origin),
            "phase": turned(phase, frequency, origin),
        }

    def quantities(self, amplitude, frequency, phase, rate):
        return {"period": 1 / frequency, "quality": math.pi * frequency / rate}


def _oscillation(x, y, **others):
    """The strongest frequency and its neighbours, every phase at the middle of x."""
    low, span = extent(x)
    nearby = frequency(x, y) + np.array([-0.25, 0.0, 0.25]) / span
    found = grid(frequency=jnp.maximum(nearby, 0.1 / span), phase=PHASES, **others)
    phase = found["phase"] - 2 * math.pi * found["frequency"] * (low + 0.5 * span)
    # the phase that was meant is that at the middle, where it least depends on the rest
    return {**found, "phase": jnp.arctan2(jnp.sin(phase), jnp.cos(phase))}


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
        return amplitude / jnp.sqrt(squared)

    def candidates(self, x, y):
        top, fwhm = peak(x, y)
        ratio = fwhm / jnp.maximum(jnp.abs(top), 1e-12)
        found = grid(
            center=jnp.abs(top) * np.array([0.98, 1.0, 1.02, 1.1]),
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
        return height * 0.5 * (1 + jnp.tanh(0.5 * rate * (x - center)))

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
        return height * jnp.exp(-jnp.exp(jnp.minimum(-rate * (x - center), 500.0)))

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
        "arctan": lambda z: 0.5 + jnp.arctan(z) / math.pi,
        "logistic": lambda z: 0.5 * (1 + jnp.tanh(0.5 * z)),
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
