"""Fits by likelihoods: the minimum by SciPy, errors by NumPy, in every way of a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from likelihood_problems import PROBLEMS, T, decay
from numpy.testing import assert_allclose

from jaxfit import (
    Chunked,
    Options,
    Prediction,
    Sharded,
    losses,
    solve,
    solve_batch,
    solve_stream,
)

POISSON = losses.Poisson()


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()), ("rows",))


# The minimum, and the errors


@pytest.mark.parametrize("name", PROBLEMS)
def test_minimum_and_errors(name):
    """The minimum by SciPy to 1e-8, and the inverse of the expected information."""
    problem = PROBLEMS[name]
    fit = solve(
        problem.fn(),
        problem.x0,
        problem.data,
        bounds=problem.bounds,
        loss=problem.likelihood,
    )
    assert fit.success
    x = problem.minimum()
    errors = problem.errors(x)
    assert_allclose((fit.x - x) / (np.abs(x) + errors), 0, atol=1e-8)
    assert_allclose(fit.stderr(), errors, rtol=1e-6)
    on_bound = x == problem.box[0]
    assert_allclose(np.asarray(fit.active), -1.0 * on_bound)
    assert np.all(np.asarray(fit.x)[on_bound] == x[on_bound])
    assert np.any(on_bound) == (name == "no background")


@pytest.mark.parametrize("name", PROBLEMS)
def test_cost_is_that_of_scipys_distribution(name):
    """Costs and their constants add up to minus the logarithms of SciPy's densities."""
    problem = PROBLEMS[name]
    mean = problem.mean(np, np.abs(problem.x0), problem.t)
    expected = problem.minus_log(mean, problem.observed)
    likelihood, observed = problem.likelihood, jnp.asarray(problem.observed)
    cost = likelihood.cost(jnp.asarray(mean), observed)
    if name != "own":
        assert_allclose(cost + likelihood.constant(observed), expected, rtol=1e-10)
    here = np.real(problem.cost(mean, problem.observed))
    more = problem.cost(1.01 * mean, problem.observed) - here
    with np.errstate(invalid="ignore"):
        by_scipy = problem.minus_log(1.01 * mean, problem.observed) - expected
    inside = np.isfinite(by_scipy)
    assert_allclose(np.real(more)[inside], by_scipy[inside], atol=1e-12)


def test_a_fit_of_float32():
    problem = PROBLEMS["lifetime"]
    data = tuple(value.astype(np.float32) for value in problem.data)
    x0 = problem.x0.astype(np.float32)
    fit = solve(problem.fn(), x0, data, bounds=(0, np.inf), loss=POISSON)
    assert fit.success
    assert fit.x.dtype == np.float32
    x = problem.minimum()
    errors = problem.errors(x)
    assert_allclose((np.asarray(fit.x) - x) / errors, 0, atol=2e-3)
    assert_allclose(fit.stderr(), errors, rtol=2e-3)


# Every way of a fit


LIFETIME = PROBLEMS["lifetime"]


def predicted(x, data):
    """Counts of a decay with a background."""
    t, observed = data
    return Prediction(decay(jnp, x, t), observed)


def fit_lifetime(**arguments):
    return solve(
        predicted,
        LIFETIME.x0,
        LIFETIME.data,
        loss=POISSON,
        **{"bounds": LIFETIME.bounds, **arguments},
    )


@pytest.fixture(scope="module")
def whole():
    return fit_lifetime()


def assert_same(found, expected, rtol=1e-10):
    """The same fit, but for rounding."""
    assert np.all(found.status == expected.status)
    assert_allclose(found.x, expected.x, rtol=rtol)
    assert_allclose(found.cost, expected.cost, rtol=rtol)
    assert np.all(found.count == expected.count)
    assert_allclose(found.stderr(), expected.stderr(), rtol=1e-9)


def jacobian(x, data):
    """Of the means."""
    t, _ = data
    shape = jnp.exp(-t / x[1])
    columns = shape, x[0] * t / x[1] ** 2 * shape, jnp.ones_like(t)
    return jnp.stack(columns, axis=-1)


@pytest.mark.parametrize(
    "options", [Options(jac="rev"), Options(jac="fwd"), Options(jac=jacobian)], ids=str
)
def test_jacobians(whole, options):
    assert_same(fit_lifetime(options=options), whole)


@pytest.mark.parametrize("size", [7, None])
def test_chunks(whole, size):
    assert_same(fit_lifetime(rows=Chunked(size)), whole)


def test_shards(whole, mesh):
    assert_same(fit_lifetime(rows=Sharded(mesh, "rows")), whole)


def test_under_jit_and_vmap(whole):
    def fit(x0, observed):
        data = jnp.asarray(T), observed
        return solve(predicted, x0, data, bounds=LIFETIME.bounds, loss=POISSON)

    assert_same(jax.jit(fit)(LIFETIME.x0, LIFETIME.observed), whole)
    three = np.tile(LIFETIME.observed, (3, 1))
    found = jax.jit(jax.vmap(fit, in_axes=(None, 0)))(LIFETIME.x0, three)
    assert_allclose(found.x, np.tile(whole.x, (3, 1)), rtol=1e-10)


@pytest.mark.parametrize("lanes", [None, 2])
def test_batches(lanes):
    """Each fit of a batch is the fit alone."""
    rng = np.random.default_rng(0)
    observed = rng.poisson(decay(np, [6.0, 1.2, 0.1], T), (5, T.size)).astype(float)
    found = solve_batch(
        predicted,
        LIFETIME.x0,
        (T, observed),
        in_axes=(None, (None, 0)),
        bounds=LIFETIME.bounds,
        loss=POISSON,
        lanes=lanes,
    )
    for i, y in enumerate(observed):
        alone = solve(
            predicted, LIFETIME.x0, (T, y), bounds=LIFETIME.bounds, loss=POISSON
        )
        assert_allclose(found.x[i], alone.x, rtol=1e-8, atol=1e-12)
        assert_allclose(found.cost[i], alone.cost, rtol=1e-12)
        assert found.status[i] == alone.status


def test_streams(whole):
    blocks = [tuple(v[i : i + 20] for v in LIFETIME.data) for i in range(0, 64, 20)]
    found = solve_stream(
        predicted, LIFETIME.x0, blocks, bounds=LIFETIME.bounds, loss=POISSON
    )
    assert_same(found, whole)


# Weights


def test_a_weight_is_a_frequency():
    """A row of weight two is that row twice, in the cost and in the errors."""
    twice = np.arange(64) % 3 == 0
    weights = np.where(twice, 2.0, 1.0)
    repeated = tuple(np.concatenate([v, v[twice]]) for v in LIFETIME.data)
    expected = solve(
        predicted, LIFETIME.x0, repeated, bounds=LIFETIME.bounds, loss=POISSON
    )
    found = fit_lifetime(weights=weights)
    assert_allclose(found.x, expected.x, rtol=1e-8)
    assert_allclose(found.cost, expected.cost, rtol=1e-12)
    assert_allclose(found.stderr(), expected.stderr(), rtol=1e-8)


@pytest.mark.parametrize("rows", [None, Chunked(7)], ids=str)
@pytest.mark.parametrize("bad", [np.nan, -5.0])
def test_a_row_of_weight_zero_may_hold_anything(rows, bad):
    left_out = np.arange(64) % 8 == 1
    t, observed = LIFETIME.data
    kept = tuple(v[~left_out] for v in LIFETIME.data)
    expected = solve(predicted, LIFETIME.x0, kept, bounds=LIFETIME.bounds, loss=POISSON)
    data = np.where(left_out, np.nan, t), np.where(left_out, bad, observed)
    found = solve(
        predicted,
        LIFETIME.x0,
        data,
        bounds=LIFETIME.bounds,
        loss=POISSON,
        weights=np.where(left_out, 0.0, 1.0),
        rows=rows,
    )
    assert_same(found, expected)


# Several likelihoods, and residuals beside them


def test_a_prior_beside_counts():
    """Residuals stand beside a Prediction: half their squares are the cost."""

    def with_prior(x, data):
        return {"counts": predicted(x, data), "prior": (x[1] - 1.1) / 0.1}

    def total(x):
        return LIFETIME.total(x) + 0.5 * ((x[1] - 1.1) / 0.1) ** 2

    fit = solve(
        with_prior, LIFETIME.x0, LIFETIME.data, bounds=LIFETIME.bounds, loss=POISSON
    )
    assert fit.success
    assert fit.count == 65
    assert np.all(fit.active == 0)
    x = np.asarray(fit.x)
    steps = 1e-30j * np.eye(3)
    gradient = np.array([total(x + step).imag / 1e-30 for step in steps])
    jac, mean = LIFETIME.jacobian(x), LIFETIME.mean(np, x, T)
    information = jac.T @ (jac / mean[:, None])
    information[1, 1] += 100
    assert_allclose(np.linalg.solve(information, gradient), 0, atol=1e-8)
    assert_allclose(fit.covariance(), np.linalg.inv(information), rtol=1e-7)


def test_two_likelihoods_in_one_fit():
    """Each Prediction may bring its own; the costs add."""
    observed = {"counts": LIFETIME.observed, "noisy": 0.3 + 0.01 * T}

    def both(x, data):
        mean = decay(jnp, x, T)
        return {
            "counts": Prediction(mean, data["counts"]),
            "noisy": Prediction(x[2], data["noisy"], losses.StudentT(0.05, 3.0)),
        }

    def broadcast(x, data):
        output = both(x, data)
        noisy = output["noisy"]
        mean = jnp.broadcast_to(noisy.mean, T.shape)
        return output | {"noisy": Prediction(mean, noisy.observed, noisy.likelihood)}

    with pytest.raises(ValueError, match=r"one mean for each observed number"):
        solve(both, LIFETIME.x0, observed, loss=POISSON)
    fit = solve(broadcast, LIFETIME.x0, observed, bounds=LIFETIME.bounds, loss=POISSON)
    assert fit.success
    x = np.asarray(fit.x)
    steps = 1e-30j * np.eye(3)

    def total(x):
        z = (x[2] - observed["noisy"]) / 0.05
        return LIFETIME.total(x) + np.sum(2 * np.log1p(z**2 / 3))

    gradient = np.array([total(x + step).imag / 1e-30 for step in steps])
    jac, mean = LIFETIME.jacobian(x), LIFETIME.mean(np, x, T)
    information = jac.T @ (jac / mean[:, None])
    information[2, 2] += 64 * 4 / (6 * 0.05**2)
    assert_allclose(np.linalg.solve(information, gradient), 0, atol=1e-8)
    assert_allclose(fit.covariance(), np.linalg.inv(information), rtol=1e-7)


# Numbers of a likelihood, one for each row


CAMERA = PROBLEMS["camera"]
VARIANCE = CAMERA.likelihood.readout


def fit_camera(likelihood, **arguments):
    return solve(CAMERA.fn(), CAMERA.x0, CAMERA.data, loss=likelihood, **arguments)


@pytest.fixture(scope="module")
def camera():
    return fit_camera(CAMERA.likelihood)


@pytest.mark.parametrize(
    "variance", [VARIANCE, VARIANCE.tolist()], ids=["array", "list"]
)
def test_numbers_of_rows_in_chunks(camera, variance):
    likelihood = losses.PoissonGaussian(np.asarray(variance))
    assert_same(fit_camera(likelihood, rows=Chunked(2)), camera)


def test_numbers_of_rows_in_shards(camera, mesh):
    assert_same(fit_camera(CAMERA.likelihood, rows=Sharded(mesh, "rows")), camera)
