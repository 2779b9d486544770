"""Small problems that many tests share, so that they share compiled programs too."""

import jax.numpy as jnp
import numpy as np


def exponential(x, t):
    """Decay with offset."""
    return x[0] * jnp.exp(-x[1] * t) + x[2]


def residual(x, data):
    """Model minus observation of the decay."""
    t, y = data
    return exponential(x, t) - y


def decay(seed=0, rows=40, noise=0.05):
    """Noisy data of the decay, and the truth."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 4, rows)
    truth = np.array([2.5, 1.3, 0.5])
    clean = truth[0] * np.exp(-truth[1] * t) + truth[2]
    return (t, clean + noise * rng.normal(size=rows)), truth


START = np.array([1.0, 1.0, 0.0])


def linear(x, data):
    """A x - b."""
    a, b = data
    return jnp.dot(a, x) - b
