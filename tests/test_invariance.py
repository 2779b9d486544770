"""What must not change an answer."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from problems import START, decay, residual

import jaxfit
from jaxfit import merge

ROWS = 40
seeds = st.integers(0, 2**31)


def weighted(x0, t, y, weights):
    return jaxfit.solve(residual, x0, (t, y), weights=weights)


fit = jax.jit(weighted)
ONES = np.ones(ROWS)


errors = jax.jit(lambda solution: solution.stderr())


def assert_same(one, two, factor=1.0):
    """Equal to a millionth of a standard error, if both are right."""
    assert one.success
    assert two.success
    error = np.abs(one.x * factor - two.x)
    assert np.all(error <= 1e-6 * np.asarray(errors(one) * np.abs(factor)))
    np.testing.assert_allclose(errors(one) * np.abs(factor), errors(two), rtol=1e-5)


@given(seeds)
def test_order_of_rows(seed):
    (t, y), _ = decay(seed % 7)
    order = np.random.default_rng(seed).permutation(ROWS)
    assert_same(fit(START, t, y, ONES), fit(START, t[order], y[order], ONES))


@given(seeds, st.floats(1e-4, 1e4))
def test_scale_of_y(seed, scale):
    """Data and linear parameters in another unit."""
    (t, y), _ = decay(seed % 7)
    factor = np.array([scale, 1, scale])
    assert_same(fit(START, t, y, ONES), fit(START * factor, t, y * scale, ONES), factor)


@given(seeds, st.floats(1e-4, 1e4))
def test_scale_of_a_parameter(seed, scale):
    """Time, and so the rate, in another unit."""
    (t, y), _ = decay(seed % 7)
    factor = np.array([1, 1 / scale, 1])
    assert_same(fit(START, t, y, ONES), fit(START * factor, t * scale, y, ONES), factor)


@given(seeds, st.sets(st.integers(0, ROWS - 1), max_size=10))
def test_rows_of_weight_zero(seed, dropped):
    """Whatever stands in a row of weight zero."""
    (t, y), _ = decay(seed % 7)
    rng = np.random.default_rng(seed)
    weights = ONES.copy()
    weights[list(dropped)] = 0
    garbage = np.where(weights == 0, rng.choice([np.nan, np.inf, 1e9], ROWS), y)
    assert_same(fit(START, t, y, weights), fit(START, t, garbage, weights))


@given(seeds, st.sets(st.integers(0, ROWS - 1), min_size=5, max_size=20))
def test_duplicated_rows_are_double_weights(seed, doubled):
    (t, y), _ = decay(seed % 7)
    doubled = np.array(sorted(doubled))
    twice = np.concatenate([t, t[doubled]]), np.concatenate([y, y[doubled]])
    pad = 60 - len(twice[0])
    weights = np.concatenate([np.ones(len(twice[0])), np.zeros(pad)])
    long = fit(START, *(np.pad(column, (0, pad)) for column in twice), weights)
    weights = ONES.copy()
    weights[doubled] = 2
    short = fit(START, t, y, weights)
    assert long.success
    assert short.success
    error = np.abs(long.x - short.x)
    assert np.all(error <= 1e-6 * np.asarray(short.stderr()))
    np.testing.assert_allclose(long.cost, short.cost, rtol=1e-10)


@given(seeds)
def test_splitting_the_parameters(seed):
    (t, y), _ = decay(seed % 7)
    one = fit(START, t, y, ONES)
    two = split_fit({"a": START[:1], "b": (START[1:2], START[2])}, t, y)
    joined = np.array([two.x["a"][0], two.x["b"][0][0], two.x["b"][1]])
    assert np.all(np.abs(joined - one.x) <= 1e-6 * np.asarray(errors(one)))


@jax.jit
def split_fit(x0, t, y):
    def fn(p, data):
        return residual(jnp.stack([p["a"][0], p["b"][0][0], p["b"][1]]), data)

    return jaxfit.solve(fn, x0, (t, y))


@jax.jit
def part(t, y, weights):
    options = jaxfit.Options(max_steps=1)
    solution = jaxfit.solve(residual, START, (t, y), weights=weights, options=options)
    return solution.linearization


@given(seeds, st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS))
def test_merge_over_any_split(seed, owners):
    """Rows dealt out to four owners, merged in two different orders."""
    (t, y), _ = decay(seed % 7)
    a, b, c, d = (part(t, y, (np.array(owners) == k).astype(float)) for k in range(4))
    whole = part(t, y, ONES)
    for merged in (merge(merge(a, b), merge(c, d)), merge(d, merge(merge(c, a), b))):
        for one, two in zip(
            jax.tree.leaves(whole), jax.tree.leaves(merged), strict=True
        ):
            np.testing.assert_allclose(one, two, rtol=1e-11, atol=1e-12)
