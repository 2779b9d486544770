"""Covariance, standard errors and correlation by their conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay, linear, residual
from scipy.optimize import curve_fit

import jaxfit
from jaxfit import Status, merge

DATA, _ = decay()


@pytest.mark.parametrize("absolute", [True, False])
def test_covariance_is_scipys(absolute):
    t, y = DATA
    sigma = np.linspace(0.5, 2, 40)
    solution = jaxfit.solve(residual, START, DATA, weights=1 / sigma**2)
    _, expected = curve_fit(
        lambda t, a, b, c: a * np.exp(-b * t) + c,
        t,
        y,
        solution.x,
        sigma,
        absolute_sigma=absolute,
        xtol=1e-15,
        ftol=1e-15,
    )
    covariance = solution.covariance(absolute)
    np.testing.assert_allclose(covariance, expected, rtol=1e-5)
    np.testing.assert_allclose(
        solution.stderr(absolute), np.sqrt(np.diag(covariance)), rtol=1e-12
    )


def test_correlation():
    correlation = jaxfit.solve(residual, START, DATA).correlation()
    np.testing.assert_array_equal(np.diag(correlation), 1)
    np.testing.assert_allclose(correlation, correlation.T, rtol=1e-12)
    assert np.all(np.abs(correlation) <= 1)


def test_determined_is_a_matter_of_rank():
    """Not of the number of points; what is fixed is; in x's structure, and batched."""

    def residual(p, data):
        return data[0] * (p["a"] + p["b"]) + p["c"][0] * data[1]

    start = {"a": 1.0, "b": 2.0, "c": jnp.ones(2)}
    data = np.arange(6.0).reshape(2, 3)
    expected = {"a": False, "b": False, "c": [True, False]}  # c[1] does nothing
    solution = jaxfit.solve(residual, start, data)
    assert jax.tree.map(lambda v: v.tolist(), solution.determined()) == expected
    bounds = ({"a": 1.0, "b": -9.0, "c": -9.0}, {"a": 1.0, "b": 9.0, "c": 9.0})
    fixed = jaxfit.solve(residual, start, data, bounds=bounds).determined()
    assert jax.tree.map(lambda v: v.tolist(), fixed) == expected | {
        "a": True,
        "b": True,
    }
    few = jaxfit.solve(lambda p, t: p * t - 1, np.ones(1), np.ones(1))
    assert few.determined().tolist() == [True]
    assert np.isinf(few.stderr())
    lost = jaxfit.solve(lambda p, t: p * t - np.nan, np.ones(1), np.ones(1))
    assert lost.determined().tolist() == [False]
    many = jaxfit.solve_batch(
        lambda p, t: p * t - 1, np.ones(1), np.array([[1.0], [0.0]]), in_axes=(None, 0)
    )
    assert many.determined().tolist() == [[True], [False]]


def test_undetermined_direction():
    """b0 + b1 alone is determined: both are infinite, the third is not."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20, 3))
    a[:, 1] = a[:, 0]
    solution = jaxfit.solve(linear, np.zeros(3), (a, rng.normal(size=20)))
    stderr, covariance = solution.stderr(), solution.covariance()
    assert np.isinf(stderr[:2]).all()
    assert np.isfinite(stderr[2])
    assert np.isnan(covariance[0, 1])
    assert np.isnan(covariance[0, 2])
    correlation = solution.correlation()
    assert correlation[2, 2] == 1
    assert np.isnan(correlation[0]).all()


def test_no_degree_of_freedom():
    a = np.random.default_rng(0).normal(size=(3, 3))
    solution = jaxfit.solve(linear, np.zeros(3), (a, np.ones(3)))
    assert np.isinf(solution.stderr()).all()
    expected = np.linalg.inv(a.T @ a)
    np.testing.assert_allclose(solution.covariance(absolute=True), expected, rtol=1e-9)


def test_at_a_bound_is_free_as_in_scipy():
    bounds = np.zeros(3), np.array([2.0, 9, 9])
    solution = jaxfit.solve(residual, START, DATA, bounds=bounds)
    jacobian = jax.jacfwd(residual)(solution.x, DATA)
    variance = 2 * solution.cost / (40 - 3)
    expected = np.linalg.inv(jacobian.T @ jacobian) * variance
    np.testing.assert_array_equal(solution.active, [1, 0, 0])
    np.testing.assert_allclose(solution.covariance(), expected, rtol=1e-8)


def test_methods_of_a_batch():
    t, y = DATA
    ys = jnp.stack([y, 2 * y, y + 1])
    bounds = np.zeros(3), np.array([np.inf, 9, 9])
    batch = jax.vmap(lambda y: jaxfit.solve(residual, START, (t, y), bounds=bounds))(ys)
    assert batch.covariance().shape == (3, 3, 3)
    assert batch.success.shape == (3,)
    assert batch.message.shape == (3,)
    for i, y in enumerate(ys):
        one = jaxfit.solve(residual, START, (t, y), bounds=bounds)
        for method in ("covariance", "stderr", "correlation"):
            np.testing.assert_allclose(
                getattr(batch, method)()[i], getattr(one, method)(), rtol=1e-6
            )
        np.testing.assert_array_equal(batch.active[i], one.active)
        np.testing.assert_allclose(batch.gradient[i], one.gradient, atol=1e-6)


def test_a_solution_is_a_pytree():
    solution = jaxfit.solve(residual, START, DATA)
    leaves, structure = jax.tree.flatten(solution)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert jax.tree.unflatten(structure, leaves).success
    stderr = jax.jit(lambda s: s.stderr())(solution)
    np.testing.assert_allclose(stderr, solution.stderr(), rtol=1e-10)
    with pytest.raises(TypeError, match="host"):
        jax.jit(lambda s: len(s.message))(solution)


def test_every_status_has_a_sentence():
    for status in Status:
        assert status.message.endswith(".")
    assert {s.value for s in Status} == {0, 1, 2, 3, 4, 5, -1, -2, -3, -4}


def test_linearizations_merge():
    t, y = DATA
    options = jaxfit.Options(max_steps=1)

    def part(rows):
        return jaxfit.solve(
            residual, START, (t[rows], y[rows]), options=options
        ).linearization

    whole = part(slice(None))
    merged = merge(part(slice(0, 15)), part(slice(15, 40)))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def nearly_dependent(number, rows, columns, rng):
    """Matrices of wild scales, one column nearly a combination of the others."""
    matrices = rng.normal(size=(number, rows, columns))
    matrices *= 10 ** rng.uniform(-4, 4, (number, 1, columns))
    level = np.where(rng.uniform(size=number) < 0.5, 0, 10 ** rng.uniform(-9, -4))
    for matrix, apart in zip(matrices, level, strict=True):
        size = np.linalg.norm(matrix, axis=0)
        chosen = rng.integers(columns)
        others = np.arange(columns) != chosen
        parts = rng.normal(size=columns - 1) * 10 ** rng.uniform(-3, 0, columns - 1)
        column = matrix[:, others] / size[others] @ parts
        column = column / np.linalg.norm(column) + apart * rng.normal(size=rows)
        matrix[:, chosen] = column * size[chosen]
    return matrices


@pytest.mark.parametrize("with_bounds", [False, True])
def test_determined_is_the_rank(with_bounds):
    """Bounds, scales and order of the parameters hide nothing: beside NumPy's SVD."""
    rng = np.random.default_rng(1)
    matrices = nearly_dependent(1000, 8, 4, rng)
    size = np.linalg.norm(matrices, axis=1)
    x = rng.normal(size=size.shape) / size
    start = x + rng.normal(size=size.shape) / size
    noise = 0.01 * rng.normal(size=(1000, 8))
    y = np.einsum("kmn,kn->km", matrices, x) + noise
    away = np.abs(rng.normal(size=(2, *size.shape))) / size
    away = np.where(rng.uniform(size=away.shape) < 0.5, away, np.inf)
    bounds = (start - away[0], start + away[1]) if with_bounds else None
    solution = jaxfit.solve_batch(
        lambda p, data: data[0] @ p - data[1],
        start,
        (matrices, y),
        bounds=bounds,
        in_axes=(0, 0, 0 if with_bounds else None),
    )
    least = np.linalg.svd(matrices / size[:, None], compute_uv=False)[:, -1]
    says = np.asarray(solution.determined()).all(axis=1) & solution.success
    assert np.mean(solution.success) > 0.995
    regular, singular = (least > 1e-9) & solution.success, least < 1e-15
    assert min(np.sum(regular), np.sum(singular)) > 200
    assert np.all(says[regular])
    assert np.sum(says[singular]) <= 1  # of 300 and more: rounding may look like a rank
