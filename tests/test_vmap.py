"""A batch by `jax.vmap`: lanes do not see each other."""

import jax
import numpy as np
import pytest
from problems import decay, exponential

import jaxfit
from jaxfit import Status

LANES = 200


def residual(x, data):
    t, y = data
    return exponential(x, t) - y


@pytest.fixture(scope="module")
def lanes():
    """Starts near and far, data of each lane its own, one lane with NaN."""
    rng = np.random.default_rng(0)
    (t, _), truth = decay()
    x0 = truth * (1 + 0.1 * rng.normal(size=(LANES, 3)))
    x0[::10] = truth * np.exp(rng.normal(size=(LANES // 10, 3)))
    clean = np.asarray(exponential(truth, t))
    y = clean + 0.05 * rng.normal(size=(LANES, len(t)))
    y[7, 3] = np.nan
    bounds = np.array([0.0, 0.0, -5.0]), np.array([20.0, 9.0, 5.0])

    def fit(x0, y):
        return jaxfit.solve(residual, x0, (t, y), bounds=bounds)

    return fit, jax.jit(jax.vmap(fit)), x0, y


def test_neighbours_do_not_matter(lanes):
    _, batch, x0, y = lanes
    one = batch(x0, y)
    rng = np.random.default_rng(1)
    other_x0, other_y = np.roll(x0, 37, axis=0) * 1.01, np.roll(y, 37, axis=0)
    other_y[rng.integers(0, LANES, 9)] = np.nan
    kept = rng.choice(LANES, 60, replace=False)
    other_x0[kept], other_y[kept] = x0[kept], y[kept]
    two = batch(other_x0, other_y)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[kept], np.asarray(b)[kept])


def test_as_a_loop_of_single_fits(lanes):
    fit, batch, x0, y = lanes
    together = batch(x0, y)
    stderr = together.stderr()
    assert together.status[7] == Status.NONFINITE_START
    assert np.sum(together.success) >= LANES - 5
    fit = jax.jit(fit)
    same = 0
    for i in range(LANES):
        alone = fit(x0[i], y[i])
        assert i == 7 or alone.success == together.success[i]
        if together.success[i] and np.isclose(alone.cost, together.cost[i], rtol=1e-6):
            error = np.abs(alone.x - together.x[i])
            assert np.all(error <= 1e-6 * stderr[i]), i
            same += 1
    assert same >= LANES - 5
