"""With x64 off, as JAX has it: fits in float64 beside the user's own JAX in float32.

A function over NumPy arrays is traced by a fit, by another fit in the other precision,
and called and jitted by its user, in any order.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit

T = np.linspace(0, 4, 50)
Y = 2 * np.exp(-1.3 * T)
TRUTH = np.array([2.0, 1.3])


def make():
    """A residual function and a model that hold arrays of their own."""
    t, y = T.copy(), Y.copy()

    def residual(p):
        model = p[0] * jnp.exp(-p[1] * t)
        return (model - y) * jnp.asarray(np.where(t > 9, 0.0, 1.0))

    @jax.jit
    def model(x, a, k):
        return a * jnp.exp(-k * t)

    return residual, model


def called(residual, model):
    value = residual(jnp.asarray(TRUTH))
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, 0, atol=1e-6)


def jitted(residual, model):
    value = jax.jit(residual)(jnp.asarray(TRUTH))
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, 0, atol=1e-6)


def own_jit(residual, model):
    value = model(T, 2.0, 1.3)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, Y, atol=1e-6)


def solved(residual, model):
    fit = jaxfit.solve(lambda p, _: residual(p), jnp.ones(2))
    assert fit.x.dtype == np.float32
    np.testing.assert_allclose(fit.x, TRUTH, rtol=1e-5)


def least_squares(residual, model):
    fit = jaxfit.least_squares(residual, [1.0, 1.0])
    assert fit.x.dtype == np.float64
    np.testing.assert_allclose(fit.x, TRUTH, rtol=1e-8)


def least_squares_jitted(residual, model):
    fit = jaxfit.least_squares(jax.jit(residual), [1.0, 1.0])
    np.testing.assert_allclose(fit.x, TRUTH, rtol=1e-8)


def curve_fit(residual, model):
    found, _ = jaxfit.curve_fit(model, T, Y)
    np.testing.assert_allclose(found, TRUTH, rtol=1e-8)


USES = [
    *(called, jitted, own_jit, solved),
    *(least_squares, least_squares_jitted, curve_fit),
]


@pytest.mark.parametrize("seed", range(4))
def test_any_order(seed):
    """Sequences of all uses, forth and back."""
    rng = np.random.default_rng(seed)
    order = [USES[i] for i in rng.permutation(len(USES))]
    with jax.enable_x64(False):
        functions = make()
        for use in (*order, *order[::-1]):
            use(*functions)


def test_all_pairs_are_in_some_order():
    pairs = set()
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(USES)).tolist()
        pairs |= set(itertools.combinations([*order, *order[::-1]], 2))
    assert len(pairs) == len(USES) ** 2


def test_arithmetic_in_more_digits_than_jax_has():
    """NumPy takes a difference of large numbers; float32 could not."""
    start, t = 1.7e9, 1.7e9 + T

    def residual(p, y):
        return p[0] * jnp.exp(-p[1] * jnp.asarray(t - start)) - y

    with jax.enable_x64(False):
        fit = jaxfit.solve(residual, jnp.ones(2), Y)
    np.testing.assert_allclose(fit.x, TRUTH, rtol=1e-5)


def test_arrays_of_jax_that_meet_numpys_alone():
    """The model is JAX's: NumPy's float64 would be compared with JAX's float32."""

    def line(x, a, b):
        return a * x + b * jnp.ones_like(x)

    with jax.enable_x64(False):
        found, _ = jaxfit.curve_fit(line, T, 2 * T + 1)
    np.testing.assert_allclose(found, [2, 1], rtol=1e-8)
