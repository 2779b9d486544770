"""NIST's certified nonlinear regression problems (StRD), read from `nist/*.dat`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DIRECTORY = Path(__file__).parent / "nist"


@dataclass(frozen=True)
class Problem:
    """One problem: data, two starts and NIST's certified answer."""

    name: str
    model: Callable  # (b, x) -> y
    x: np.ndarray  # (m,) or (predictors, m)
    y: np.ndarray  # (m,)
    starts: np.ndarray  # (2, n)
    certified: np.ndarray  # (n,)
    stderr: np.ndarray  # (n,)
    rss: float

    def residual(self, b, data):
        x, y = data
        return self.model(b, x) - y

    @property
    def data(self):
        return self.x, self.y


def _exponentials(b, x):
    return sum(b[2 * i] * jnp.exp(-b[2 * i + 1] * x) for i in range(3))


def _two_gaussians(b, x):
    return (
        b[0] * jnp.exp(-b[1] * x)
        + b[2] * jnp.exp(-(((x - b[3]) / b[4]) ** 2))
        + b[5] * jnp.exp(-(((x - b[6]) / b[7]) ** 2))
    )


def _cubic_over_cubic(b, x):
    numerator = b[0] + x * (b[1] + x * (b[2] + x * b[3]))
    return numerator / (1 + x * (b[4] + x * (b[5] + x * b[6])))


def _chwirut(b, x):
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def _saturation(b, x):
    return b[0] * (1 - jnp.exp(-b[1] * x))


def _enso(b, x):
    def wave(cosine, sine, period):
        phase = 2 * jnp.pi * x / period
        return cosine * jnp.cos(phase) + sine * jnp.sin(phase)

    return b[0] + wave(b[1], b[2], 12) + wave(b[4], b[5], b[3]) + wave(b[7], b[8], b[6])


MODELS = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": _saturation,
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": _enso,
    "Eckerle4": lambda b, x: b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": _two_gaussians,
    "Gauss2": _two_gaussians,
    "Gauss3": _two_gaussians,
    "Hahn1": _cubic_over_cubic,
    "Kirby2": lambda b, x: (b[0] + x * (b[1] + x * b[2])) / (1 + x * (b[3] + x * b[4])),
    "Lanczos1": _exponentials,
    "Lanczos2": _exponentials,
    "Lanczos3": _exponentials,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * jnp.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4]),
    "Misra1a": _saturation,
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * jnp.exp(-b[2] * x[1]),
    "Rat42": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi,
    "Thurber": _cubic_over_cubic,
}


def load(name: str) -> Problem:
    """Read one problem; Nelson's response is replaced by its logarithm."""
    lines = (DIRECTORY / f"{name}.dat").read_text().splitlines()
    table = [
        [float(v) for v in line.split("=")[1].split()]
        for line in lines[:60]
        if re.match(r"\s*b\d+\s*=", line)
    ]
    first, second, certified, stderr = np.array(table).T
    rss = next(line for line in lines if line.startswith("Residual Sum of Squares"))
    rows = np.array([[float(v) for v in line.split()] for line in lines[60:] if line])
    y, x = rows[:, 0], rows[:, 1:].T
    return Problem(
        name=name,
        model=MODELS[name],
        x=x if len(x) > 1 else x[0],
        y=np.log(y) if name == "Nelson" else y,
        starts=np.stack([first, second]),
        certified=certified,
        stderr=stderr,
        rss=float(rss.split(":")[1]),
    )


def digits(value, certified) -> float:
    """Correct digits (LRE): the least over the parameters, at most 11."""
    error = np.abs(np.asarray(value) - certified) / np.abs(certified)
    if not np.all(np.isfinite(error)):
        return 0.0
    return float(np.clip(-np.log10(np.maximum(error, 1e-11)), 0, 11).min())
