"""Many small data sets: spots of two sizes, and decays."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Workload(NamedTuple):
    """Many data sets of one model, and where their fits start."""

    name: str
    model: Callable  # (numpy or jax.numpy, parameters) -> expected values
    jacobian: Callable  # parameters -> its derivative (m, n), in NumPy
    draw: Callable  # (generator, number) -> parameters that are true
    noise: Callable  # (generator, expected) -> data
    near: float  # starts lie within so much of the truth
    bounds: tuple
    far: float = 0.0  # the part of the starts that lies far away


def _spot(side):
    """Values and derivatives of a Gaussian spot on square pixels."""
    y, x = (v.ravel() for v in np.mgrid[:side, :side].astype(float))

    def gauss(xp, p):
        return xp.exp(-((x - p[1]) ** 2 + (y - p[2]) ** 2) / (2 * p[3] ** 2))

    def model(xp, p):
        return p[0] * gauss(xp, p) + p[4]

    def jacobian(p):
        amplitude, x0, y0, sigma, _ = p
        g, dx, dy = gauss(np, p), x - x0, y - y0
        slope = amplitude * g / sigma**2
        columns = g, slope * dx, slope * dy, slope * (dx**2 + dy**2) / sigma
        return np.stack([*columns, np.ones_like(g)], axis=-1)

    return model, jacobian


def _spot_bounds(side):
    return np.array([0, -1, -1, 0.2, -1e3]), np.array([1e5, side, side, side, 1e4])


ECHOES = np.linspace(10, 320, 32)


def _decay(xp, p):
    return p[0] * xp.exp(-ECHOES / p[1]) + p[2]


def _decay_jacobian(p):
    e = np.exp(-ECHOES / p[1])
    return np.stack([e, p[0] * e * ECHOES / p[1] ** 2, np.ones_like(e)], axis=-1)


def _uniform(*ranges):
    low, high = np.transpose(ranges)
    return lambda rng, number: rng.uniform(low, high, (number, len(low)))


def _normal(sigma):
    return lambda rng, expected: expected + sigma * rng.normal(size=expected.shape)


PSF = Workload(
    "PSF",
    *_spot(15),
    _uniform((500, 1500), (6, 8), (6, 8), (1.2, 1.8), (50, 150)),
    lambda rng, expected: rng.poisson(expected).astype(float),
    0.1,
    _spot_bounds(15),
)
T2 = Workload(
    *("T2", _decay, _decay_jacobian),
    _uniform((500, 1500), (30, 150), (10, 50)),
    _normal(10),
    0.2,
    (np.array([0, 1, -1e3]), np.array([1e5, 2e3, 1e4])),
)
G5 = Workload(
    "G5",
    *_spot(5),
    _uniform((500, 500), (1.8, 2.2), (1.8, 2.2), (1, 1), (10, 10)),
    _normal(17.06),
    0.1,
    _spot_bounds(5),
)
MIXED = T2._replace(name="T2, mixed", far=0.1)


def problems(workload: Workload, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and data of so many fits."""
    rng = np.random.default_rng(0)
    truth = workload.draw(rng, number)
    expected = jax.vmap(functools.partial(workload.model, jnp))
    expected = np.asarray(jax.jit(expected)(truth))
    x0 = truth * (1 + workload.near * rng.uniform(-1, 1, truth.shape))
    far = rng.random(number) < workload.far
    x0[far] *= np.exp(rng.normal(size=x0[far].shape))
    return np.clip(x0, *workload.bounds), workload.noise(rng, expected)


def residual(workload: Workload) -> Callable:
    """A new function (x, y) -> residuals."""
    return lambda x, y: workload.model(jnp, x) - y
