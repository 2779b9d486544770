"""Oscillations, resonances and steps."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float

from jaxfit._numpy.either import (
    Real,
    Reals,
    Scalar,
    Values,
    each,
    erf,
    rfft,
    sums_at,
    xp,
)
from jaxfit.models._model import POSITIVE, Candidates, Model, Params
from jaxfit.models._projection import (
    Remainder,
    best_of,
    extent,
    grid,
    largest_hump,
    with_known,
)

SPECTRUM = 4  # frequencies for each that the range of x resolves


def turned(phase: Real, frequency: Real, origin: Real) -> Real:
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

    def function(self, x: Real, amplitude: Real, frequency: Real, phase: Real) -> Real:
        return amplitude * xp.sin(2 * math.pi * frequency * x + phase)

    def start_beside(self, rest: Remainder, known: Params) -> dict[str, Any]:
        return _oscillation(self, rest, known, {})

    def about(
        self, origin: Real, amplitude: Real, frequency: Real, phase: Real
    ) -> Reals:
        return {"phase": turned(phase, frequency, origin)}

    def quantities(self, amplitude: Real, frequency: Real, phase: Real) -> Reals:
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

    def function(
        self, x: Real, amplitude: Real, frequency: Real, phase: Real, rate: Real
    ) -> Real:
        wave = xp.sin(2 * math.pi * frequency * x + phase)
        return amplitude * xp.exp(-rate * x) * wave

    def start_beside(self, rest: Remainder, known: Params) -> dict[str, Any]:
        rates = np.array([0, 0.6, 1.2, 2.4, 5, 10, 20, 40]) / extent(rest.x).span
        return _oscillation(self, rest, known, {"rate": rates})

    def about(
        self, origin: Real, amplitude: Real, frequency: Real, phase: Real, rate: Real
    ) -> Reals:
        return {
            "amplitude": amplitude * xp.exp(-rate * origin),
            "phase": turned(phase, frequency, origin),
        }

    def quantities(
        self, amplitude: Real, frequency: Real, phase: Real, rate: Real
    ) -> Reals:
        return {"period": 1 / frequency, "quality": math.pi * frequency / rate}


def _oscillation(
    model: Model, rest: Remainder, known: Params, damping: Mapping[str, Any]
) -> dict[str, Any]:
    """The frequency, and the rate of damping if any, that explain most of the data.

    Amplitude and phase are those of a cosine and a sine, two linear columns. Where
    these stand beside others, all are solved for together, at every frequency.

    Args:
        damping: rates (R,) to try by the name of their parameter, or nothing.
    """
    low, span = extent(rest.x)
    t = rest.x - low

    # the frequency and rate at which a periodogram is largest
    rates = with_known(damping, known).get("rate", xp.zeros(1))
    factors = rest.factor * xp.exp(-rates[:, None] * t)
    gains = each(factors, lambda f: _periodogram(rest._replace(factor=f)), factors)
    best = xp.argmax(gains)
    frequency = (best % gains.shape[1]).astype(t.dtype) / (SPECTRUM * span)

    # the best near these, by cosine and sine themselves
    near = {"frequency": frequency + np.arange(-4.0, 5.0) / (8 * SPECTRUM * span)}
    if damping:
        rate = rates[best // gains.shape[1]]
        near["rate"] = xp.concatenate([rate * np.geomspace(0.5, 2, 5), rates[:1]])
    near = with_known(grid(**near), known)

    def columns(x: Values, frequency: Real, rate: Real = 0.0) -> list[Real]:
        turn = 2 * math.pi * frequency * (x - low)
        decay = xp.exp(-rate * (x - low))
        return [decay * xp.cos(turn), decay * xp.sin(turn)]

    wave = best_of(columns, rest, near)

    # the phase at x = 0 of their sum, or that which is known, and then the amplitude
    angle = xp.arctan2(wave.linear[0], wave.linear[1])
    angle = angle - 2 * math.pi * wave.others["frequency"] * low
    phase = xp.asarray(known.get("phase", xp.arctan2(xp.sin(angle), xp.cos(angle))))
    one = {name: value[None] for name, value in {**wave.others, "phase": phase}.items()}
    best = best_of(model.columns, rest, one)
    return {**best.others, "amplitude": best.linear[0]}


def _periodogram(rest: Remainder) -> Float[Any, " k"]:
    """What a cosine and a sine explain of the data, for a range of frequencies.

    Lomb's periodogram (Astrophys. Space Sci. 39, 1976) beside other columns: the sum of
    squares that both take together, with the others' coefficients free. All sums over
    the points are Fourier transforms of points moved to a grid, sixteen to the shortest
    period (Press and Rybicki, Astrophys. J. 338, 1989, do so with more care).
    """
    x, factor = rest.x, rest.factor
    low, span = extent(x)
    intervals = max(len(x) - 1, 1)  # points as even as these lie on the grid

    # of y, of the columns beside, and of the squared weights: at twice the frequency
    place = xp.round((x - low) / span * (4 * intervals)).astype(int)
    rows = xp.concatenate([(factor * rest.orthogonal)[None], factor * rest.basis])
    rows = xp.concatenate([rows, (factor**2)[None]])
    transform = rfft(sums_at(place, rows, 4 * SPECTRUM * intervals))
    k = np.arange(SPECTRUM // 2 * intervals + 1)
    image, others, double = transform[0, k], transform[1:-1, k], transform[-1, 2 * k]
    total = transform[-1, 0].real

    # normal equations of cosine and sine, at right angles to the columns beside
    cosines = 0.5 * (total + double.real) - xp.sum(others.real**2, axis=0)
    sines = 0.5 * (total - double.real) - xp.sum(others.imag**2, axis=0)
    mixed = 0.5 * double.imag - xp.sum(others.real * others.imag, axis=0)
    cosines, sines = (v + 1e-6 * total for v in (cosines, sines))
    determinant = cosines * sines - mixed**2
    a, b = image.real, image.imag
    gain = (sines * a**2 - 2 * mixed * a * b + cosines * b**2) / determinant
    counts = (determinant > 0) & (k >= SPECTRUM // 2)  # half a cycle at least
    return xp.where(counts, gain, 0)


class DampedOscillator(Model):
    """amplitude / √((1 - (x / center)²)² + (2 damping x / center)²): a resonance.

    The amplitude of a driven oscillator against the frequency x of the drive.

    Parameters: `amplitude`, the response at x = 0; `center`, the natural frequency, in
    units of x; `damping`, the damping ratio, without unit.
    Derived: `quality` = 1 / (2 damping); `height`, the response at x = center.
    """

    linear = ("amplitude",)
    limits = {"center": POSITIVE, "damping": POSITIVE}

    def function(self, x: Real, amplitude: Real, center: Real, damping: Real) -> Real:
        ratio = x / center
        squared = (1 - ratio**2) ** 2 + (2 * damping * ratio) ** 2
        return amplitude / xp.sqrt(squared)

    def candidates(self, x: Values, y: Values) -> Candidates:
        hump = largest_hump(x, y)
        top = xp.abs(hump.center)
        ratio = hump.fwhm / xp.maximum(top, 1e-12)
        return grid(
            center=top * np.array([0.98, 1.0, 1.02, 1.1]),
            damping=ratio * np.array([0.1, 0.17, 0.29, 0.5, 1.0]),
        )

    def quantities(self, amplitude: Real, center: Real, damping: Real) -> Reals:
        return {"quality": 0.5 / damping, "height": 0.5 * amplitude / damping}


class _Steps(NamedTuple):
    """Where a step may be."""

    centers: Float[Any, " k"]
    span: Scalar  # of x


def _steps(x: Values) -> _Steps:
    """Places of a step: every sixteenth of the range."""
    low, span = extent(x)
    return _Steps(low + span * np.linspace(0.03, 0.97, 17), span)


class Logistic(Model):
    """height / (1 + exp(-rate (x - center))): growth up to a limit.

    Parameters: `height`, the upper limit; `center`, the x of half the height; `rate`,
    per x, negative for a falling curve.
    """

    linear = ("height",)
    places = ("center",)

    def function(self, x: Real, height: Real, center: Real, rate: Real) -> Real:
        return height * 0.5 * (1 + xp.tanh(0.5 * rate * (x - center)))

    def candidates(self, x: Values, y: Values) -> Candidates:
        centers, span = _steps(x)
        rates = np.array([2.0, 4.0, 8.0, 16.0, 50.0, 150.0])
        return grid(center=centers, rate=np.concatenate([-rates, rates]) / span)


class Gompertz(Model):
    """height exp(-exp(-rate (x - center))): growth that slows down early.

    Parameters: `height`, the upper limit; `center`, the x of the fastest growth, where
    the value is height / e; `rate`, per x.
    Derived: `fastest`, the slope at the centre.
    """

    linear = ("height",)
    places = ("center",)
    limits = {"rate": POSITIVE}

    def function(self, x: Real, height: Real, center: Real, rate: Real) -> Real:
        return height * xp.exp(-xp.exp(xp.minimum(-rate * (x - center), 500.0)))

    def candidates(self, x: Values, y: Values) -> Candidates:
        centers, span = _steps(x)
        rates = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 50.0, 150.0])
        return grid(center=centers, rate=rates / span)

    def quantities(self, height: Real, center: Real, rate: Real) -> Reals:
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

    _FORMS: ClassVar[Mapping[str, Callable]] = {
        "erf": lambda z: 0.5 * (1 + erf(z / math.sqrt(2))),
        "arctan": lambda z: 0.5 + xp.arctan(z) / math.pi,
        "logistic": lambda z: 0.5 * (1 + xp.tanh(0.5 * z)),
    }

    def __check_init__(self) -> None:
        if self.form not in self._FORMS:
            raise ValueError(
                f"form is {self.form!r}; give 'erf', 'arctan' or 'logistic'."
            )

    def function(self, x: Real, height: Real, center: Real, width: Real) -> Real:
        return height * self._FORMS[self.form]((x - center) / width)

    def candidates(self, x: Values, y: Values) -> Candidates:
        centers, span = _steps(x)
        return grid(center=centers, width=span * np.array([0.004, 0.015, 0.05, 0.15]))
