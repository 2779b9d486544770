"""Starts from few rows: nearer to the solution than where they began."""

import jax
import numpy as np
import optax
import pytest
from problems import START, decay, residual

from jaxfit import Shared, losses, solve, subsample_start, warm_start

ROWS = 5000
DATA, TRUTH = decay(rows=ROWS)
FAR = np.array([10.0, 6.0, -3.0])


@pytest.fixture(scope="module")
def expected():
    return solve(residual, START, DATA)


def distance(x, expected):
    return np.max(np.abs(np.asarray(x) - expected.x))


def test_descent(expected):
    call = {"optimizer": optax.adam(0.05), "steps": 500, "batch_rows": 64}
    x = warm_start(residual, FAR, DATA, **call)
    assert distance(x, expected) < 0.15
    found = solve(residual, x, DATA)
    assert found.nfev < solve(residual, FAR, DATA).nfev
    again = warm_start(residual, FAR, DATA, **call, key=jax.random.key(0))
    np.testing.assert_array_equal(again, x)
    other = warm_start(residual, FAR, DATA, **call, key=jax.random.key(1))
    assert np.any(other != x)
    traced = jax.jit(lambda x: warm_start(residual, x, DATA, **call))(FAR)
    np.testing.assert_allclose(traced, x, rtol=1e-9)


def test_descent_of_anything(expected):
    """Bounds, a robust loss, weights, NaN of weight zero, shared leaves, a pytree."""
    t, y = np.array(DATA[0]), np.array(DATA[1])
    y[::7] += 5
    y[::5] = np.nan
    weights = np.where(np.isnan(y), 0.0, 1.0)

    def named(x, data):
        return residual([x["a"], x["b"], x["c"]], data[:2]) + data[2]

    x0 = {"a": FAR[0], "b": FAR[1], "c": FAR[2]}
    found = warm_start(
        named,
        x0,
        (t, y, Shared(0.0)),
        optimizer=optax.adam(0.1),
        weights=weights,
        loss=losses.Cauchy(0.2),
        bounds=({"a": 0.0, "b": 0.5, "c": -3.0}, 12.0),
    )
    assert set(found) == {"a", "b", "c"}
    assert distance([found[name] for name in "abc"], expected) < 0.3
    assert found["b"] >= 0.5


def test_the_default_optimizer():
    x = warm_start(residual, START, DATA, steps=50)
    assert np.all(np.isfinite(x))
    assert np.all(x != START)


def test_a_step_that_is_not_finite_is_left_out():
    x = warm_start(residual, START, (DATA[0], np.full(ROWS, np.nan)), steps=5)
    np.testing.assert_array_equal(x, START)


class Counted(np.ndarray):
    """An array that counts the rows that are read."""

    rows_read = 0

    def __getitem__(self, key):
        found = super().__getitem__(key)
        Counted.rows_read += len(found)
        return np.asarray(found)


def test_a_sample(expected):
    data = tuple(leaf.view(Counted) for leaf in DATA)
    x = subsample_start(residual, FAR, data, sample_rows=500)
    assert Counted.rows_read == 1000
    assert np.max(np.abs(x - expected.x) / expected.stderr()) < 5 * np.sqrt(10)
    assert solve(residual, x, DATA).nfev < solve(residual, FAR, DATA).nfev
    traced = jax.jit(lambda x: subsample_start(residual, x, DATA, sample_rows=500))(FAR)
    np.testing.assert_allclose(traced, x, rtol=1e-9)


def test_bad_arguments():
    with pytest.raises(ValueError, match="steps is 0"):
        warm_start(residual, START, DATA, steps=0)
    with pytest.raises(ValueError, match="batch_rows is -1"):
        warm_start(residual, START, DATA, batch_rows=-1)
    with pytest.raises(TypeError, match="loss is 'huber'"):
        warm_start(residual, START, DATA, loss="huber")
    with pytest.raises(ValueError, match=r"sample_rows is 1\.5"):
        subsample_start(residual, START, DATA, sample_rows=1.5)
    with pytest.raises(ValueError, match="Shared"):
        subsample_start(residual, START, (*DATA, 1.0))
