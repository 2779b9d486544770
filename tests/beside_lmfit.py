"""Six data sets, each fitted here and by lmfit: one function for both."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lmfit
import numpy as np
from nist import load

import jaxfit


class Pair(NamedTuple):
    """The same fit twice."""

    name: str
    written: Callable[[ModuleType], Callable]  # with numpy or with jax.numpy
    start: dict[str, float]
    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray | None = None

    def ours(self) -> jaxfit.Fit:
        """By jaxfit."""
        model = self.written(jnp)
        return jaxfit.fit(model, self.x, self.y, sigma=self.sigma, p0=self.start)

    def theirs(self, **settings: Any) -> Any:
        """By lmfit."""
        model = lmfit.Model(self.written(np))
        parameters = model.make_params(**self.start)
        weights = None if self.sigma is None else 1 / self.sigma
        return model.fit(self.y, parameters, x=self.x, weights=weights, **settings)

    def theirs_exactly(self) -> Any:
        """By lmfit to its last digits: the exact derivative, and no early stop."""
        model = self.written(jnp)
        sigma = 1.0 if self.sigma is None else self.sigma
        slopes = jax.jit(jax.jacfwd(lambda p: -model(jnp.asarray(self.x), **p)))

        def jacobian(parameters, *_, **__):
            columns = slopes({n: jnp.asarray(parameters[n].value) for n in self.start})
            varied = [n for n in self.start if parameters[n].vary]
            return np.stack([np.asarray(columns[n]) / sigma for n in varied], axis=1)

        tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
        return self.theirs(fit_kws={"Dfun": jacobian, **tolerances})


def _saturation(xp):
    def misra1a(x, b1, b2):
        return b1 * (1 - xp.exp(-b2 * x))

    return misra1a


def _ultrasound(xp):
    def chwirut(x, b1, b2, b3):
        return xp.exp(-b1 * x) / (b2 + b3 * x)

    return chwirut


def _transmittance(xp):
    def eckerle(x, b1, b2, b3):
        return b1 / b2 * xp.exp(-0.5 * ((x - b3) / b2) ** 2)

    return eckerle


def _growth(xp):
    def rat42(x, b1, b2, b3):
        return b1 / (1 + xp.exp(b2 - b3 * x))

    return rat42


def _peak(xp):
    def peak(x, height, center, width, slope, intercept):
        bell = xp.exp(-0.5 * ((x - center) / width) ** 2)
        return height * bell + slope * x + intercept

    return peak


def _decay(xp):
    def decay(x, amplitude, rate, offset):
        return amplitude * xp.exp(-rate * x) + offset

    return decay


def _nist(name: str, written) -> Pair:
    problem = load(name)
    names = [f"b{k + 1}" for k in range(len(problem.certified))]
    start = dict(zip(names, map(float, problem.starts[1]), strict=True))
    return Pair(name, written, start, problem.x, problem.y)


def _simulated(name: str, written, truth: dict[str, float], noise: float) -> Pair:
    generator = np.random.default_rng(1)
    x = np.linspace(0, 10, 100)
    sigma = noise * generator.uniform(0.5, 2, x.size)
    y = written(np)(x, **truth) + sigma * generator.normal(size=x.size)
    start = {n: 1.1 * v + 0.01 for n, v in truth.items()}
    return Pair(name, written, start, x, y, sigma)


PAIRS = [
    _nist("Misra1a", _saturation),
    _nist("Chwirut2", _ultrasound),
    _nist("Eckerle4", _transmittance),
    _nist("Rat42", _growth),
    _simulated(
        *("peak", _peak),
        *({"height": 5, "center": 4, "width": 0.8, "slope": 0.1, "intercept": 1}, 0.2),
    ),
    _simulated("decay", _decay, {"amplitude": 8, "rate": 0.7, "offset": 1}, 0.3),
]
