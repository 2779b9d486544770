"""Robust losses with the scale "auto": Huber's convex form, and Tukey's after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from jaxfit import (
    Chunked,
    Options,
    Sharded,
    Weighted,
    fit,
    fit_batch,
    least_squares,
    losses,
    solve,
    solve_batch,
    solve_joint,
    solve_stream,
)
from jaxfit._core import auto_scale

K = 1.345
T = np.linspace(0, 4, 60)
X0 = jnp.array([3.0, 1.0, 0.0])
TRUTH = np.array([5.0, 1.2, 1.0])


def model(p, t):
    return p[0] * jnp.exp(-p[1] * t) + p[2]


def residual(p, data):
    t, y = data
    return model(p, t) - y


def data_of(seed, number=()):
    rng = np.random.default_rng(seed)
    y = np.asarray(model(TRUTH, T)) + 0.2 * rng.normal(size=(*number, 60))
    y[..., 5] += 8
    y[..., 30] -= 5
    y[..., 41] += 3
    return y


Y = data_of(0)
HUBER, TUKEY = losses.Huber("auto"), losses.Tukey("auto")


def solved(loss=HUBER, **settings):
    return solve(residual, X0, (T, Y), loss=loss, **settings)


def test_constants_are_those_of_the_normal_distribution():
    def expected(function):
        return integrate.quad(lambda z: function(z) * stats.norm.pdf(z), -9, 9)[0]

    chi = expected(lambda z: min(z * z, K * K) / 2)
    inside = integrate.quad(lambda z: z * z * stats.norm.pdf(z), -K, K)[0]
    np.testing.assert_allclose(auto_scale.CHI, chi, rtol=1e-7)
    np.testing.assert_allclose(auto_scale.INSIDE, inside, rtol=1e-9)


def test_the_joint_minimum():
    """Parameters and scale are those that minimise Q, by SciPy."""

    def cost(both):
        s = np.exp(both[3])
        u = np.abs((both[0] * np.exp(-both[1] * T) + both[2] - Y) / s)
        rho = np.where(u <= K, u * u / 2, K * u - K * K / 2)
        return s * rho.sum() + (60 - 3) * auto_scale.CHI * s

    found = solved()
    assert found.success
    start = np.append(found.x, np.log(0.3))
    by_scipy = optimize.minimize(cost, start, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(found.x, by_scipy.x[:3], rtol=1e-6)
    np.testing.assert_allclose(found.loss_scale / K, np.exp(by_scipy.x[3]), rtol=1e-6)
    # and it is the solution with that scale
    known = solved(losses.Huber(float(found.loss_scale)))
    np.testing.assert_allclose(found.x, known.x, rtol=1e-8)
    np.testing.assert_allclose(found.cost, known.cost, rtol=1e-10)
    np.testing.assert_allclose(found.stderr(), known.stderr(), rtol=1e-7)
    np.testing.assert_allclose(
        found.stderr(absolute=True), known.stderr(absolute=True), rtol=1e-7
    )


def test_the_scale_is_consistent_for_normal_errors():
    """The mean of s over data sets is that of the errors, few points or many."""
    rng = np.random.default_rng(1)
    y = np.asarray(model(TRUTH, T)) + 0.2 * rng.normal(size=(2000, 60))
    found = solve_batch(
        residual, X0, (T, y), in_axes=(None, (None, 0)), loss=HUBER
    ).loss_scale
    mean, error = np.mean(found) / K, np.std(found) / K / np.sqrt(2000)
    # a mean of roots is a little below the root of a mean
    assert abs(mean / 0.2 - 1) < 0.01 + 3 * error


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_units_do_not_matter(factor):
    def scaled(p, data):
        return factor * residual(p, data)

    found, usual = solve(scaled, X0, (T, Y), loss=HUBER), solved()
    np.testing.assert_allclose(found.x, usual.x, rtol=1e-7)
    np.testing.assert_allclose(found.loss_scale, factor * usual.loss_scale, rtol=1e-7)


@pytest.mark.parametrize("loss", [HUBER, TUKEY])
def test_ways_to_visit_rows(loss):
    weights = np.ones(60)
    weights[7], weights[8] = 0, 3
    y = np.where(weights > 0, Y, np.nan)
    whole = solve(residual, X0, (T, y), weights=weights, loss=loss)
    parts = [slice(0, 20), slice(20, 45), slice(45, 60)]
    mesh = jax.make_mesh((1,), ("d",))
    others = [
        solve(residual, X0, (T, y), weights=weights, loss=loss, rows=rows)
        for rows in (Chunked(16), Sharded(mesh, "d"))
    ]
    blocks = [Weighted((T[k], y[k]), weights[k]) for k in parts]
    others.append(solve_stream(residual, X0, blocks, loss=loss))
    for other in others:
        assert other.success
        np.testing.assert_allclose(other.x, whole.x, rtol=1e-8)
        np.testing.assert_allclose(other.loss_scale, whole.loss_scale, rtol=1e-8)
        np.testing.assert_allclose(other.stderr(), whole.stderr(), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        Options(x_scale=np.array([5.0, 1.0, 1.0])),
        Options(jac=lambda p, data: jax.jacobian(residual)(p, data)),
        Options(jac="rev"),
    ],
    ids=["x_scale", "jac", "rev"],
)
def test_options_are_those_of_the_parameters(options):
    found, usual = solved(options=options), solved()
    assert found.success
    np.testing.assert_allclose(found.x, usual.x, rtol=1e-7)
    np.testing.assert_allclose(found.loss_scale, usual.loss_scale, rtol=1e-7)


def test_tukey_takes_the_scale_of_huber():
    huber, tukey = solved(), solved(TUKEY)
    np.testing.assert_allclose(tukey.loss_scale / 4.685, huber.loss_scale / K)
    known = solve(residual, huber.x, (T, Y), loss=losses.Tukey(float(tukey.loss_scale)))
    np.testing.assert_allclose(tukey.x, known.x, rtol=1e-9)
    # outliers count for nothing
    np.testing.assert_allclose(tukey.x, TRUTH, atol=0.25)


def test_a_batch_is_its_fits():
    y = data_of(2, (4,)) * np.array([1, 3, 1e3, 1e-3])[:, None]
    weights = np.ones((4, 60))
    weights[:, 9] = 0
    bounds = (0.0, np.inf)
    settings = {"loss": TUKEY, "bounds": bounds}
    batch = solve_batch(
        residual, X0, (T, y), in_axes=(None, (None, 0)), weights=weights, **settings
    )
    for k in range(4):
        one = solve(residual, X0, (T, y[k]), weights=weights[k], **settings)
        np.testing.assert_allclose(batch.x[k], one.x, rtol=1e-8)
        np.testing.assert_allclose(batch.loss_scale[k], one.loss_scale, rtol=1e-8)
        np.testing.assert_allclose(batch.cost[k], one.cost, rtol=1e-8)


def test_derivatives():
    def of(y):
        found = solve(residual, X0, (T, y), loss=HUBER)
        return jnp.append(found.x, found.loss_scale)

    place, h = 10, 1e-5
    moved = jax.jacobian(of)(jnp.asarray(Y))[:, place]
    step = h * np.eye(60)[place]
    differences = (of(Y + step) - of(Y - step)) / (2 * h)
    np.testing.assert_allclose(moved, differences, rtol=1e-5, atol=1e-7)


def test_fits_by_name():
    shown = fit("exponential + constant", T, Y, loss=HUBER)
    known = float(solved().loss_scale)
    np.testing.assert_allclose(shown.method.loss.scale, known, rtol=1e-6)
    assert "Loss: Huber, scale 0.26" in shown.report()
    np.testing.assert_array_equal(np.flatnonzero(shown.outliers()), [5, 30, 41])


@pytest.mark.parametrize("covariance", [None, "gram"])
def test_batches_by_name(covariance):
    y = data_of(3, (3,))
    y[1] *= 10
    y[2, 3] = np.nan
    settings = {"sigma": 0.1, "absolute_sigma": True, "covariance": covariance}
    fits = fit_batch("exponential + constant", T, y, loss=HUBER, **settings)
    for k in range(3):
        one = fits.fit(k)
        np.testing.assert_allclose(fits["rate"][k], one["rate"].value, rtol=1e-7)
        np.testing.assert_allclose(
            fits.errors["rate"][k], one["rate"].stderr, rtol=1e-6
        )
        np.testing.assert_allclose(fits.chi_square[k], one.chi_square, rtol=1e-6)


def _without_start():
    return solve(residual, X0.at[0].set(np.nan), (T, Y), loss=HUBER)


def test_what_cannot_start_is_told():
    assert not _without_start().success


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.Cauchy("auto"), "Cauchy: scale is 'auto'"),
        (lambda: losses.Huber("car"), "positive finite number, .* or auto"),
        (
            lambda: least_squares(lambda p: p - 1, [0.0], loss=HUBER),
            "which finds its scale",
        ),
        (
            lambda: solve_joint(
                lambda x, u, d: x + u - d, jnp.ones(1), jnp.ones((2, 1)), T, loss=HUBER
            ),
            "a joint fit needs a number",
        ),
        (
            lambda: fit_batch(
                "exponential", T, data_of(4, (2,)), loss=HUBER, shared="rate"
            ),
            "shared= needs a number",
        ),
        (
            lambda: fit_batch(
                "exponential", T, data_of(4, (2,)), loss=HUBER, prior={"rate": (1, 1)}
            ),
            "a prior is in units of sigma",
        ),
        (
            lambda: solve_stream(
                residual, X0, [(T, Y)], loss=HUBER, checkpoint="unused"
            ),
            "a stream with a checkpoint",
        ),
    ],
)
def test_where_it_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
