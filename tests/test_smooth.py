"""What is said to have no kink has none, and a fit of it no search for one."""

import jax
import jax.numpy as jnp
import numpy as np
import primitives
import pytest

import jaxfit
from jaxfit import Status
from jaxfit._programs.smooth import is_smooth

T = np.linspace(-1.0, 2.0, 8)


def found_smooth(function) -> bool:
    return is_smooth(jax.make_jaxpr(function)(jnp.ones(3), T).jaxpr)


SMOOTH = {
    "exponential": lambda p, t: p[0] * jnp.exp(-p[1] * t) + p[2],
    "gaussian": lambda p, t: p[0] * jnp.exp(-(((t - p[1]) / p[2]) ** 2)),
    "power of data": lambda p, t: p[0] * jnp.abs(t) ** p[1],
    "mask of data": lambda p, t: jnp.where(t > 0, p[0], p[1] * t) + jnp.floor(t),
    "matrix": lambda p, t: jnp.stack([t, t**2, jnp.abs(t)], 1) @ p,
    "in calls": lambda p, t: jax.jit(lambda p: jax.nn.sigmoid(p[0] * t))(p),
    "gathered": lambda p, t: p[jnp.array([0, 2] * 4)] * t,
    "no parameter": lambda p, t: jnp.abs(t),
}

KINKED = {
    "abs": lambda p, t: jnp.abs(t - p[0]),
    "max": lambda p, t: jnp.maximum(t, p[0]),
    "where": lambda p, t: jnp.where(t > p[0], t, p[0]),
    "clip": lambda p, t: jnp.clip(p[0] * t, 0, 1),
    "root of a square": lambda p, t: jnp.sqrt((t - p[0]) ** 2),
    "power of a parameter": lambda p, t: ((t - p[0]) ** 2) ** 0.5,
    "in calls": lambda p, t: jax.jit(lambda p: jax.nn.relu(t - p[0]))(p),
    "in a loop": lambda p, t: jax.lax.fori_loop(
        0, 2, lambda _, c: jnp.abs(c - p[0]), t
    ),
    "in a branch": lambda p, t: jax.lax.cond(
        p[0] > 0, lambda: p[0] * t, lambda: -p[0] * t
    ),
    "interpolation": lambda p, t: jnp.interp(p[0] * t, T, T**2),
    "sorted": lambda p, t: jnp.sort(p[0] * t),
    "rounded": lambda p, t: jnp.floor(p[0] * t) * p[1],
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth(name):
    assert found_smooth(SMOOTH[name])


@pytest.mark.parametrize("name", KINKED)
def test_kinked(name):
    assert not found_smooth(KINKED[name])


@pytest.mark.parametrize("name", primitives.TRIED)
def test_slopes_of_smooth_functions_do_not_jump(name):
    """A difference of slopes falls with the distance, at many places."""
    with jax.numpy_dtype_promotion("standard"):
        function = primitives.TRIED[name]
        if not is_smooth(jax.make_jaxpr(function)(jnp.ones(3), T).jaxpr):
            return
        slope = jax.jit(jax.jacfwd(lambda p: jnp.asarray(function(p, T), float)))
        rng = np.random.default_rng(0)
        for _ in range(20):
            p, step = rng.normal(size=3), rng.normal(size=3)
            at = np.asarray(slope(p))
            ahead = [np.asarray(slope(p + h * step)) - at for h in (1e-4, 1e-6)]
            ok = np.isfinite(ahead[0]) & np.isfinite(ahead[1])
            size = np.abs(ahead[0][ok]) + 1e-6 * (1 + np.abs(at[ok]))
            assert np.all(np.abs(ahead[1][ok]) <= size)


def test_kink_is_found_still():
    solution = jaxfit.solve(lambda x, _: 1 + jnp.abs(x - 0.3), jnp.zeros(1))
    assert solution.status == Status.KINK
