"""Data sets that are simulated: for every model of the library the ranges of its
parameters, where it is seen, and how noisy it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import models
from jaxfit.models import Model


class Case(NamedTuple):
    """A model, its parameters' ranges, and its data."""

    model: Model
    x: object
    ranges: dict[str, tuple[float, float]]
    noise: float  # standard deviation, in parts of the range of the noiseless data

    @property
    def name(self) -> str:
        return self.model.label

    def draw(self, number: int, seed: int = 0) -> tuple[dict, np.ndarray]:
        """True parameters (number,) by name, and data (number, m)."""
        generator = np.random.default_rng(seed)
        truth = {
            name: generator.uniform(*self.ranges[name], number)
            for name in self.model.names
        }
        x = jax.tree.map(jnp.asarray, self.x)
        values = np.asarray(jax.vmap(lambda p: self.model.evaluate(x, p))(truth))
        values = values.reshape(number, -1)
        scale = self.noise * np.ptp(values, axis=1, keepdims=True)
        scale = np.where(scale > 0, scale, self.noise)
        return truth, values + scale * generator.normal(size=values.shape)


def _pixels(side):
    down, across = np.mgrid[:side, :side].astype(float)
    return across.ravel(), down.ravel()


_LINE = np.linspace(0, 10, 81)
_PEAK = {"height": (5, 20), "center": (3, 7), "width": (0.4, 1.2)}
_AREA = {"area": (5, 20), "center": (3, 7)}
_SPOT = {"height": (50, 200), "center_x": (4, 8), "center_y": (4, 8)}
_DOSE = np.geomspace(1e-3, 100, 24)
_WAVE = {"amplitude": (1, 5), "frequency": (0.15, 2.5), "phase": (-3, 3)}

CASES = [
    Case(models.Constant(), _LINE, {"c": (-5, 5)}, 0.3),
    Case(models.Linear(), _LINE, {"slope": (-3, 3), "intercept": (-5, 5)}, 0.1),
    Case(models.Quadratic(), _LINE, dict.fromkeys("abc", (-3, 3)), 0.1),
    Case(models.Polynomial(4), _LINE, {f"c{k}": (-2, 2) for k in range(5)}, 0.1),
    Case(
        models.Exponential(), _LINE, {"amplitude": (2, 20), "rate": (-0.5, 3.0)}, 0.05
    ),
    Case(
        models.BiExponential(),
        np.linspace(0, 10, 161),
        {
            "amplitude1": (5, 10),
            "rate1": (2, 5),
            "amplitude2": (5, 10),
            "rate2": (0.15, 0.4),
        },
        0.01,
    ),
    Case(
        models.StretchedExponential(),
        _LINE,
        {"amplitude": (5, 20), "lifetime": (0.5, 4), "exponent": (0.5, 1.6)},
        0.02,
    ),
    Case(
        models.PowerLaw(),
        np.linspace(0.5, 10, 80),
        {"amplitude": (1, 10), "exponent": (-2.5, 3)},
        0.03,
    ),
    Case(
        models.MichaelisMenten(),
        np.linspace(0.1, 10, 40),
        {"maximum": (2, 20), "constant": (0.3, 8)},
        0.05,
    ),
    Case(
        models.Hill(),
        np.linspace(0.1, 10, 40),
        {"maximum": (2, 20), "constant": (1.5, 6), "exponent": (1, 4)},
        0.03,
    ),
    Case(
        models.FourParameterLogistic(),
        _DOSE,
        {"bottom": (0, 20), "top": (60, 120), "ec50": (0.05, 5), "slope": (0.7, 2.5)},
        0.04,
    ),
    Case(
        models.Arrhenius(),
        np.linspace(280, 380, 41),
        {"prefactor": (1e8, 1e10), "energy": (4e4, 8e4)},
        0.02,
    ),
    Case(models.Gaussian(), _LINE, _PEAK, 0.1),
    Case(models.Lorentzian(), _LINE, _PEAK, 0.1),
    Case(
        models.Voigt(), _LINE, _AREA | {"sigma": (0.3, 0.8), "gamma": (0.2, 0.8)}, 0.03
    ),
    Case(models.PseudoVoigt(), _LINE, _PEAK | {"fraction": (0.1, 0.9)}, 0.03),
    Case(models.Moffat(), _LINE, _PEAK | {"exponent": (1, 4)}, 0.03),
    Case(models.Pearson7(), _LINE, _PEAK | {"exponent": (0.8, 5)}, 0.03),
    Case(
        models.SkewedGaussian(),
        _LINE,
        _AREA | {"width": (0.6, 1.5), "skew": (-4, 4)},
        0.03,
    ),
    Case(
        models.ExponentialGaussian(),
        _LINE,
        {"area": (5, 20), "center": (2, 5), "width": (0.3, 0.8), "rate": (0.5, 2.5)},
        0.03,
    ),
    Case(models.Doniach(), _LINE, _PEAK | {"asymmetry": (0.05, 0.4)}, 0.02),
    Case(
        models.BreitWigner(),
        _LINE,
        {"amplitude": (2, 10), "center": (3, 7), "width": (0.3, 1), "q": (-4, 4)},
        0.03,
    ),
    Case(
        models.DampedOscillator(),
        np.linspace(0.1, 10, 100),
        {"amplitude": (1, 5), "center": (2, 7), "damping": (0.03, 0.3)},
        0.03,
    ),
    Case(models.Sine(), _LINE, _WAVE, 0.15),
    Case(models.DampedSine(), _LINE, _WAVE | {"rate": (0.02, 0.5)}, 0.05),
    Case(
        models.Logistic(),
        _LINE,
        {"height": (2, 20), "center": (3, 7), "rate": (0.7, 4)},
        0.05,
    ),
    Case(
        models.Gompertz(),
        _LINE,
        {"height": (2, 20), "center": (2, 6), "rate": (0.5, 3)},
        0.05,
    ),
    *(
        Case(
            models.Step(form=form),
            _LINE,
            {"height": (2, 20), "center": (3, 7), "width": (0.2, 1.2)},
            0.05,
        )
        for form in ("erf", "arctan", "logistic")
    ),
    Case(models.Gaussian2D(), _pixels(13), _SPOT | {"width": (1, 2.5)}, 0.1),
    Case(
        models.EllipticGaussian2D(),
        _pixels(13),
        _SPOT | {"width_x": (2, 3.2), "width_y": (0.9, 1.5), "angle": (-1.4, 1.4)},
        0.05,
    ),
]

SUMS = [
    Case(
        models.Gaussian() + models.Linear(),
        _LINE,
        _PEAK | {"slope": (-0.5, 0.5), "intercept": (-5, 5)},
        0.05,
    ),
    Case(
        models.Exponential() + models.Constant(),
        _LINE,
        {"amplitude": (5, 20), "rate": (0.3, 2), "c": (-5, 5)},
        0.03,
    ),
    Case(
        models.Gaussian() + models.Lorentzian(prefix="b_") + models.Constant(),
        np.linspace(0, 10, 161),
        {
            "height": (8, 12),
            "center": (2, 3.5),
            "width": (0.3, 0.6),
            "b_height": (8, 12),
            "b_center": (6.5, 8),
            "b_width": (0.3, 0.6),
            "c": (-5, 5),
        },
        0.03,
    ),
    Case(
        models.Gaussian2D() + models.Constant(),
        _pixels(13),
        _SPOT | {"width": (1, 2), "c": (0, 100)},
        0.05,
    ),
]
