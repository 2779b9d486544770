"""Likelihoods in batches with numbers of rows, in joint fits, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from numpy.testing import assert_allclose
from test_implicit import assert_derivatives, central, everything

from jaxfit import (
    Chunked,
    Options,
    Prediction,
    Sharded,
    Shared,
    losses,
    solve,
    solve_batch,
    solve_joint,
)

M, B = 32, 8
T = np.linspace(0.0, 4.0, M)
RNG = np.random.default_rng(0)
POISSON = losses.Poisson()


def decay(x, t):
    return x[0] * jnp.exp(-t / x[1]) + x[2]


def predicted(x, data):
    """A decay with a background."""
    t, observed = data
    return Prediction(decay(x, t), observed)


TRUTH, X0 = np.array([9.0, 1.1, 0.8]), np.array([6.0, 1.5, 0.5])
MEANS = np.asarray(decay(TRUTH, T))
COUNTS = RNG.poisson(MEANS, (B, M)).astype(float)
POSITIVE = np.array([0.0, 0.1, 0.0]), np.full(3, np.inf)


# Numbers of a likelihood in batches


VARIANCES = {
    "of rows": RNG.uniform(0.5, 3.0, M),
    "of fits": RNG.uniform(0.5, 3.0, (B, 1)),
    "of both": RNG.uniform(0.5, 3.0, (B, M)),
}


@pytest.mark.parametrize("lanes", [None, 3])
@pytest.mark.parametrize("name", VARIANCES)
def test_numbers_of_a_batch(name, lanes):
    """Each fit has its own row of the numbers, as if it were alone."""
    variance = VARIANCES[name]
    fits = solve_batch(
        predicted,
        X0,
        (T, COUNTS),
        in_axes=(None, (None, 0)),
        bounds=POSITIVE,
        loss=losses.PoissonGaussian(variance),
        lanes=lanes,
    )
    each = np.broadcast_to(variance, (B, M))
    for i in range(0, B, 3):
        loss = losses.PoissonGaussian(each[i])
        alone = solve(predicted, X0, (T, COUNTS[i]), bounds=POSITIVE, loss=loss)
        assert alone.success
        assert_allclose(fits.x[i], alone.x, rtol=1e-8)
        assert_allclose(fits.cost[i], alone.cost, rtol=1e-12)
        assert_allclose(fits.stderr()[i], alone.stderr(), rtol=1e-7)


def test_numbers_that_do_not_fit_a_batch():
    loss = losses.PoissonGaussian(np.ones((B + 1, M)))
    with pytest.raises(ValueError, match=r"shape \(9, 32\).*or of all 8"):
        solve_batch(predicted, X0, (T, COUNTS), in_axes=(None, (None, 0)), loss=loss)


# Joint fits


def block(x, u, data):
    """One lifetime for all; a height and a background of each."""
    t, observed = data
    return Prediction(u[0] * jnp.exp(-t / x[0]) + u[1], observed)


def dense(both, data):
    t, observed = data
    mean = jax.vmap(lambda u, y: block(both[0], u, (t, y)).mean)(both[1], observed)
    return Prediction(mean, observed)


LIKELIHOODS = {
    "Poisson": POISSON,
    "PoissonGaussian": losses.PoissonGaussian(VARIANCES["of both"]),
    "StudentT": losses.StudentT(2.0, 9.0),
}
U0 = np.tile([6.0, 0.5], (B, 1))
START = np.array([1.5])
FINE = Options(ftol=1e-26, xtol=0.0, gtol=1e-15)


@pytest.mark.parametrize("is_bounded", [True, False])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_joint_fit_is_the_dense_fit(name, is_bounded):
    """x, u and their errors; on bounds, a background ends at zero."""
    loss, observed = LIKELIHOODS[name], COUNTS
    arguments, both = {}, {}
    if is_bounded:
        rate = np.array([0.1]), np.array([np.inf])
        arguments = {"bounds": rate, "local_bounds": (0.0, np.inf)}
        both = {"bounds": ((rate[0], 0.0), (rate[1], np.inf))}
        observed = np.where(T > 2.0, 0.0, COUNTS)
    fit = solve_joint(
        block, START, U0, (Shared(T), observed), loss=loss, options=FINE, **arguments
    )
    whole = solve(dense, (START, U0), (T, observed), loss=loss, options=FINE, **both)
    assert fit.success
    assert whole.success
    scale_x, scale_u = whole.stderr()
    assert_allclose((fit.x - whole.x[0]) / scale_x, 0, atol=1e-8)
    assert_allclose((fit.local - whole.x[1]) / scale_u, 0, atol=1e-8)
    assert_allclose(fit.cost, whole.cost, rtol=1e-12)
    assert_allclose(fit.stderr(), scale_x, rtol=1e-7)
    assert_allclose(fit.local_stderr(), scale_u, rtol=1e-7)
    if is_bounded and name != "StudentT":
        assert np.any(fit.local == 0)


@pytest.mark.parametrize("way", ["chunks", "shards"])
def test_joint_fits_in_pieces(way):
    """With a number for each row of each block."""
    loss = LIKELIHOODS["PoissonGaussian"]
    rows = Chunked(3) if way == "chunks" else None
    if way == "shards":
        rows = Sharded(Mesh(np.array(jax.devices()), ("rows",)), "rows")
    data = (Shared(T), COUNTS)
    expected = solve_joint(block, START, U0, data, loss=loss)
    found = solve_joint(block, START, U0, data, loss=loss, rows=rows)
    assert found.success
    assert_allclose(found.x, expected.x, rtol=1e-9)
    assert_allclose(found.stderr(), expected.stderr(), rtol=1e-8)


# Derivatives


def fit_counts(observed=COUNTS[0], loss=POISSON, **arguments):
    return solve(predicted, X0, (T, observed), loss=loss, options=FINE, **arguments)


DIRECTION = np.cos(np.arange(M))
NOISY = np.hypot(MEANS + 1.3 * RNG.normal(size=M), 1.3 * RNG.normal(size=M))


@pytest.mark.parametrize("name", ["Poisson", "Gamma", "Binomial"])
def test_by_observed(name):
    """Everything of a fit, by what was observed."""
    clean = jnp.asarray(MEANS + 0.3)
    loss = {
        "Poisson": POISSON,
        "Gamma": losses.Gamma(5.0),
        "Binomial": losses.Binomial(40.0),
    }[name]

    def moved(s):
        return everything(fit_counts(clean + s * DIRECTION, loss))

    assert_derivatives(moved, 0.2, second=name == "Poisson")


@pytest.mark.parametrize("kind", ["Rician", "StudentT", "PoissonGaussian"])
def test_by_numbers_of_the_likelihood(kind):
    """Everything of a fit, by sigma, scale or variance."""

    def moved(s):
        loss = {
            "Rician": lambda: losses.Rician(1.0 + s),
            "StudentT": lambda: losses.StudentT(1.0 + s, 4.0),
            "PoissonGaussian": lambda: losses.PoissonGaussian(1.0 + s),
        }[kind]()
        return everything(fit_counts(NOISY, loss))

    assert_derivatives(moved, 0.3)


def test_by_weights_and_a_bound():
    """Everything of a fit at a bound that moves, by weights and the bound."""

    def moved(s):
        upper = jnp.stack([100.0, 10.0, 0.6 + 0.1 * s])
        fit = fit_counts(weights=1 + s * T, bounds=(POSITIVE[0], upper))
        return everything(fit)

    assert_derivatives(moved, 0.3)


def test_in_vmap_and_batches():
    """x of each fit by its counts: the jacobian of the fit alone."""

    def alone(observed):
        return solve(
            predicted, X0, (jnp.asarray(T), observed), loss=POISSON, options=FINE
        ).x

    def together(observed):
        data = jnp.asarray(T), observed
        axes = (None, (None, 0))
        return solve_batch(
            predicted, X0, data, in_axes=axes, loss=POISSON, options=FINE
        ).x

    some = jnp.asarray(COUNTS[:2] + 0.5)
    expected = np.stack([central_jacobian(alone, y) for y in some])
    in_vmap = jax.jit(jax.vmap(jax.jacobian(alone)))(some)
    assert_allclose(in_vmap, expected, atol=1e-7)
    in_batch = jax.jit(jax.jacobian(together))(some)
    assert_allclose(in_batch[[0, 1], :, [0, 1]], in_vmap, atol=1e-9)
    assert_allclose(in_batch[0, :, 1], 0, atol=0)


def central_jacobian(function, at):
    """By differences of fits."""
    function = jax.jit(function)
    columns = [
        central(lambda s, i=i: function(at.at[i].add(s)), 0.0) for i in range(len(at))
    ]
    return np.stack(columns, axis=1)


def test_in_joint_fits():
    """Shared and local parameters by what was observed."""

    def moved(s):
        observed = jnp.asarray(COUNTS[:3]) + 0.5 + s * DIRECTION**2
        data = (Shared(T), observed)
        fit = solve_joint(block, START, U0[:3], data, loss=POISSON, options=FINE)
        return jnp.concatenate([fit.x, jnp.ravel(fit.local)])

    assert_derivatives(moved, 0.2)
