"""Joint fits: equal to the dense fit of all parameters at once, and what it lacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from numpy.testing import assert_allclose
from test_implicit import assert_derivatives

from jaxfit import (
    Chunked,
    JointSolution,
    Options,
    Sharded,
    Shared,
    Status,
    Whole,
    losses,
    solve,
    solve_joint,
)
from jaxfit._joint import fit as joint_fit
from jaxfit._joint.affine import is_affine
from jaxfit._joint.fit import set_up_joint
from jaxfit._joint.solve import joint_request
from jaxfit._joint.sweep import sweep
from jaxfit._rows.linearization import Frame
from jaxfit._rows.residuals import Evaluated

B, M = 50, 30
T = np.linspace(0, 4, M)
RNG = np.random.default_rng(0)
TRUE_U = np.stack([RNG.uniform(1, 3, B), RNG.uniform(-1, 1, B)], axis=1)
NOISE = RNG.normal(size=(B, M))
Y = TRUE_U[:, :1] * np.exp(-1.3 * T) + TRUE_U[:, 1:] + 0.05 * NOISE
X0, U0 = np.array([1.0]), np.tile([1.0, 0.0], (B, 1))
DATA = (Shared(T), Y)


def decay(x, u, data):
    """Heights and offsets of its own for each block, one rate for all."""
    t, y = data
    return u[0] * jnp.exp(-x[0] * t) + u[1] - y


def at_once(fn):
    """The residuals of all blocks as a function of all parameters."""

    def dense(both, data):
        shared, blocks = data
        return jax.vmap(lambda u, y: fn(both[0], u, (shared, y)))(both[1], blocks)

    return dense


dense_decay = at_once(decay)
LOSSES = {
    "plain": None,
    "huber": losses.Huber(0.05),
    "soft": losses.SoftL1(0.05),
    "cauchy": losses.Cauchy(0.1),
    "arctan": losses.Arctan(0.3),
    "tukey": losses.Tukey(0.5),
}
FINE = Options(ftol=1e-26, xtol=0.0, gtol=1e-15)


def assert_as_dense(fit, dense, rtol=1e-9):
    """Values, errors and covariances of the fit of all parameters at once."""
    assert fit.success
    assert dense.success
    error_x, error_u = dense.stderr()
    assert_allclose(fit.x, dense.x[0], rtol=rtol)
    assert_allclose(fit.local, dense.x[1], rtol=rtol, atol=rtol)
    assert_allclose(fit.cost, dense.cost, rtol=1e-12)
    assert fit.count == dense.count
    assert_allclose(fit.stderr(), error_x, rtol=rtol)
    assert_allclose(fit.local_stderr(), error_u, rtol=rtol)
    n, (blocks, size) = fit.x.size, fit.local.shape
    whole = np.asarray(dense.covariance())
    cross = whole[n:, :n].reshape(blocks, size, n)
    local = whole[n:, n:].reshape(blocks, size, blocks, size)
    own = local[np.arange(blocks), :, np.arange(blocks)]
    scale = np.max(np.abs(own))
    assert_allclose(fit.covariance(), whole[:n, :n], rtol=rtol)
    assert_allclose(fit.cross_covariance(), cross, rtol=rtol, atol=1e-9 * scale)
    assert_allclose(fit.local_covariance(), own, rtol=rtol, atol=1e-9 * scale)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name):
    loss = LOSSES[name]
    start, near = np.array([1.25]), TRUE_U + 0.02  # of several minima the same
    fit = solve_joint(decay, start, near, DATA, loss=loss, options=FINE)
    dense = solve(dense_decay, (start, near), (T, Y), loss=loss, options=FINE)
    assert_as_dense(fit, dense)
    assert fit.nfev <= dense.nfev


LOW, HIGH = np.array([0.0, -0.5]), np.array([2.5, 0.5])


@pytest.mark.parametrize("name", ["plain", "soft"])
def test_bounds_active_on_both(name):
    loss = LOSSES[name]
    start, limits = np.array([0.5]), (0.0, 0.8)
    own = {"local_bounds": (LOW, HIGH), "loss": loss, "options": FINE}
    fit = solve_joint(decay, start, U0, DATA, bounds=limits, **own)
    lower, upper = np.tile(LOW, (B, 1)), np.tile(HIGH, (B, 1))
    bounds = ((0.0, lower), (0.8, upper))
    dense = solve(
        dense_decay, (start, U0), (T, Y), bounds=bounds, loss=loss, options=FINE
    )
    assert_as_dense(fit, dense)
    assert fit.active == 1
    assert np.array_equal(fit.active, dense.active[0])
    assert np.array_equal(fit.local_active, dense.active[1])
    assert set(np.unique(fit.local_active)) == {-1, 0, 1}


def test_a_block_beyond_the_scale_of_the_loss():
    """It does not hold up the others, and its parameters are not determined."""
    y = Y.copy()
    y[4] += 100 * NOISE[4]
    near = TRUE_U + 0.1
    loss = losses.Tukey(0.1)
    fit = solve_joint(decay, X0, near, (Shared(T), y), loss=loss, local_bounds=(-9, 9))
    assert fit.success
    assert fit.local_status[4] == Status.STALLED
    assert not np.any(fit.local_determined()[4])
    assert_allclose(fit.x, 1.3, atol=0.05)


def test_a_fixed_local_parameter():
    fit = solve_joint(decay, X0, U0, DATA, local_bounds=([-np.inf, 0.1], [np.inf, 0.1]))
    dense = solve(
        lambda p, d: dense_decay((p[0], jnp.stack([p[1], 0 * p[1] + 0.1], 1)), d),
        (X0, U0[:, 0]),
        (T, Y),
    )
    assert np.all(fit.local[:, 1] == 0.1)
    assert np.all(fit.local_stderr()[:, 1] == 0)
    assert_allclose(fit.x, dense.x[0], rtol=1e-9)
    assert_allclose(fit.stderr(), dense.stderr()[0], rtol=1e-9)
    assert_allclose(fit.local_stderr()[:, 0], dense.stderr()[1], rtol=1e-9)


def test_blocks_of_different_length():
    """By weights of zero, NaN where they are; a block without any is left out."""
    weights = (np.arange(M) < RNG.integers(5, M, B)[:, None]) * 4.0
    weights[7] = 0
    y = np.where(weights > 0, Y, np.nan)
    fit = solve_joint(decay, X0, U0, (Shared(T), y), weights=weights)
    kept = np.delete(np.arange(B), 7)
    dense = solve(dense_decay, (X0, U0[kept]), (T, Y[kept]), weights=weights[kept])
    assert fit.success
    assert_allclose(fit.x, dense.x[0], rtol=1e-9)
    assert_allclose(fit.local[kept], dense.x[1], rtol=1e-7, atol=1e-8)
    assert fit.count == dense.count == np.sum(weights > 0)
    assert_allclose(fit.stderr(), dense.stderr()[0], rtol=1e-9)
    assert_allclose(fit.local_stderr()[kept], dense.stderr()[1], rtol=1e-9)
    assert np.all(np.isinf(fit.local_stderr()[7]))
    assert not np.any(fit.local_determined()[7])
    absolute = fit.local_stderr(absolute=True)[kept]
    assert_allclose(absolute, dense.stderr(absolute=True)[1], rtol=1e-9)


def test_structures():
    """Pytrees, complex residuals, starts that all share."""

    def fn(x, u, data):
        phase = x["rate"] * data["t"] + u["phase"][0]
        height = u["height"]
        wave = jax.lax.complex(height * jnp.cos(phase), height * jnp.sin(phase))
        return {"wave": wave - data["y"]}  # complex

    phase = np.linspace(0, 1, B)[:, None]
    y = TRUE_U[:, :1] * np.exp(1j * (1.3 * T + phase)) + 0.01 * NOISE
    u0 = {"height": Shared(2.0), "phase": 0.9 * phase}
    fit = solve_joint(
        fn, {"rate": 1.25}, u0, {"t": Shared(T), "y": y}, local_bounds=(-9.0, 9.0)
    )
    assert fit.success
    assert fit.count == 2 * B * M
    assert_allclose(fit.x["rate"], 1.3, atol=0.01)
    assert_allclose(fit.local["height"], TRUE_U[:, 0], atol=0.02)
    assert fit.local["phase"].shape == fit.local_stderr()["phase"].shape == (B, 1)
    assert fit.local_active["height"].shape == (B,)


def test_float32():
    narrow = jax.tree.map(lambda leaf: np.float32(leaf), (X0, U0, T, Y))
    x0, u0, t, y = narrow
    for options in ({}, {"linear": True}):
        fit = solve_joint(decay, x0, u0, (Shared(t), y), **options)
        assert fit.success
        assert fit.x.dtype == fit.local.dtype == np.float32
        exact = solve_joint(decay, X0, U0, DATA)
        assert_allclose(fit.x, exact.x, rtol=1e-4)
        assert_allclose(fit.stderr(), exact.stderr(), rtol=1e-3)


# Linear local parameters


def exponentials(x, u, data):
    """Two exponentials and an offset."""
    t, y = data
    return u[0] * jnp.exp(-x[0] * t) + u[1] * jnp.exp(-x[1] * t) + u[2] - y


SPECTRA = 1000
AMOUNTS = np.random.default_rng(1).uniform(1, 3, (SPECTRA, 3))
TRUE_X = np.array([0.4, 2.5])
SHAPES = np.stack([np.exp(-TRUE_X[0] * T), np.exp(-TRUE_X[1] * T), np.ones(M)])
MANY_Y = AMOUNTS @ SHAPES + 0.05 * np.random.default_rng(2).normal(size=(SPECTRA, M))
MANY = (Shared(T), MANY_Y)
NO_START = Shared(np.full(3, np.nan))  # its numbers do not matter


def general(*arguments, **options):
    """The fit without `linear=True`."""
    return solve_joint(*arguments, options=FINE, **options)


def test_variable_projection():
    """A thousand right-hand sides: the full fit, from a mixture of 31 blocks."""
    start = np.array([0.3, 3.0])
    fit = solve_joint(exponentials, start, NO_START, MANY, linear=True)
    full = general(exponentials, start, Shared(np.ones(3)), MANY)
    assert fit.success
    assert full.success
    assert_allclose(fit.x, full.x, rtol=1e-9)
    assert_allclose(fit.local, full.local, rtol=1e-9)
    assert_allclose(fit.stderr(), full.stderr(), rtol=1e-9)
    assert_allclose(fit.local_stderr(), full.local_stderr(), rtol=1e-9)
    assert_allclose(fit.covariance(), full.covariance(), rtol=1e-9)
    cross = full.cross_covariance()
    atol = 1e-9 * np.max(np.abs(cross))
    assert_allclose(fit.cross_covariance(), cross, rtol=1e-9, atol=atol)
    assert fit.count == full.count == SPECTRA * M
    # one of the columns by itself: the classical variable projection
    columns = np.stack([np.exp(-fit.x[0] * T), np.exp(-fit.x[1] * T), np.ones(M)])
    left = MANY_Y.T - columns.T @ np.linalg.lstsq(columns.T, MANY_Y.T, rcond=None)[0]
    assert_allclose(2 * fit.cost, np.sum(left**2), rtol=1e-12)


@pytest.mark.parametrize("shift", [30.0, 1 / 30])
def test_starts_far_off(shift):
    """30 times off it succeeds where the dense fit does, in fewer trips from both."""
    few, trips, dense_trips = MANY_Y[:6], 0, 0
    for start in (TRUE_X * [shift, 1.0], TRUE_X * [1.0, shift]):
        fit = solve_joint(exponentials, start, NO_START, (Shared(T), few), linear=True)
        dense = solve(at_once(exponentials), (start, np.ones((6, 3))), (T, few))
        if dense.success:
            assert fit.success
            assert fit.cost <= dense.cost * (1 + 1e-9)
            trips, dense_trips = trips + fit.nfev, dense_trips + dense.nfev
    assert 0 < trips < dense_trips


AFFINE = {
    "sum": (lambda x, u, d: u[0] * jnp.exp(-x[0] * d) + u[1], True),
    "matrix": (lambda x, u, d: jnp.stack([d, d ** x[0]], 1) @ u, True),
    "offset": (lambda x, u, d: u[0] * d + jnp.sin(x[0] * d) + u[1] - u[0], True),
    "product": (lambda x, u, d: u[0] * u[1] * d + x[0], False),
    "inside": (lambda x, u, d: u[0] * jnp.exp(-u[1] * d * x[0]), False),
    "rounded": (lambda x, u, d: u[0] * d + jnp.round(u[1]) * x[0], False),
    "step": (lambda x, u, d: u[0] * d + jnp.where(u[1] > 0, 1.0, x[0]), False),
    "mask": (lambda x, u, d: u[0] * jnp.where(d > x[0], d, 0.0) + u[1], True),
    "scan": (lambda x, u, d: jnp.cumsum(u[0] * d * x[0]) + u[1], True),
    "kink": (lambda x, u, d: jnp.abs(u[0] * d * x[0] + u[1]), False),
}


def traced(fn, u0, data, linear=False, **options):
    """A joint fit, set up."""
    request = joint_request(
        fn, X0, u0, data, None, None, options.get("weights"), None, None, None, linear
    )
    return set_up_joint(request)


@pytest.mark.parametrize("name", AFFINE)
def test_what_is_linear(name):
    fn, expected = AFFINE[name]
    data = np.tile(T, (3, 1)) + 1
    own = functools.partial(fn, jnp.asarray(X0), d=jnp.asarray(T) + 1)
    assert is_affine(lambda u: own(u), jnp.ones(2)) == expected
    if not expected:
        with pytest.raises(ValueError, match="not seen to be affine in u"):
            solve_joint(fn, X0, np.ones((3, 2)), data, linear=True)


LONG = np.ones((9, 3))
MIXED = {
    "data alone": (lambda x, u, d: u[0] * x[0] * d[0] + u[1] - d[1], True),
    "an offset": (lambda x, u, d: u[0] * x[0] + d[0] ** x[0] + u[1] - d[1], True),
    "a matrix": (lambda x, u, d: u[0] * x[0] * d[1] + u[1] - d[0], False),
    "moved": (lambda x, u, d: u[0] * d[0] + u[1] - x[0] * d[1], False),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_is_mixed(name):
    fn, expected = MIXED[name]
    u0, t = Shared(np.ones(2)), Shared(np.arange(1.0, 4))
    assert traced(fn, u0, (t, LONG), linear=True).is_mixed == expected
    assert not traced(fn, u0, (t, LONG[:4]), linear=True).is_mixed
    weighted = traced(fn, u0, (t, LONG), linear=True, weights=LONG)
    assert not weighted.is_mixed
    weights = Shared(np.ones(3))
    same = traced(fn, u0, (t, LONG), linear=True, weights=weights)
    assert same.is_mixed == expected


@pytest.mark.parametrize("noise", [0.05, 1e-7])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_mixture_is_all_blocks(monkeypatch, noise, is_weighted):
    """With an offset that moves, weights, and few digits left of the data."""
    short = np.linspace(0.1, 4, 12)

    def fn(x, u, data):
        t, y = data
        return u[0] * jnp.exp(-x[0] * t) + u[1] + jnp.cos(x[1] * t) - y

    amounts = AMOUNTS[:60, :2]
    y = amounts @ np.stack([np.exp(-short), np.ones(12)]) + np.cos(2 * short)
    data = Shared(short), y + noise * MANY_Y[:60, :12]
    weights = (
        Shared(np.where(np.arange(12) == 3, 0, 1 + short)) if is_weighted else None
    )
    x0 = np.array([0.8, 1.9])
    fit = functools.partial(
        solve_joint, fn, x0, Shared(np.ones(2)), data, weights=weights, linear=True
    )
    mixed = fit()
    monkeypatch.setattr(joint_fit, "can_be_mixed", lambda *_: False)
    plain = jax.jit(lambda _: fit())(0.0)
    assert mixed.success
    assert plain.success
    error = np.asarray(plain.stderr())
    assert np.all(np.abs(mixed.x - plain.x) < 1e-6 * error + 1e-14)
    assert_allclose(mixed.cost, plain.cost, rtol=1e-8)
    assert_allclose(mixed.local, plain.local, rtol=1e-8)
    assert_allclose(mixed.stderr(), error, rtol=1e-8)
    assert_allclose(mixed.local_covariance(), plain.local_covariance(), rtol=1e-6)
    assert mixed.count == plain.count


# The kernel


@pytest.mark.parametrize("condition", [1.0, 1e5, 1e9, 1e13])
@pytest.mark.parametrize("held", [False, True])
def test_the_sweep_is_the_schur_complement(condition, held):
    """Against a dense projection, from a condition of the local columns to none."""
    rng = np.random.default_rng(3)
    local = rng.normal(size=(3, 25))
    local[2] = local[0] - local[1] + local[2] / condition
    shared, residual = rng.normal(size=(2, 25)), rng.normal(size=25)
    shared[1] += 3 * local[0]
    weights = rng.uniform(0.5, 2, 25)
    free = np.array([True, True, not held])
    frame = Frame(jnp.eye(2), jnp.eye(2))
    own, across = (
        Evaluated(
            residual=jnp.asarray(residual),
            columns=jnp.asarray(columns),
            cost=None,
            weights=jnp.asarray(weights),
        )
        for columns in (local, shared)
    )
    swept = jax.jit(lambda *a: sweep(*a, jnp.asarray(free), None, frame))(own, across)
    root = np.sqrt(weights)
    basis, _ = np.linalg.qr((root * local[free]).T)
    left = root * shared - (root * shared) @ basis @ basis.T
    rtol = 1e-10 + 2e-17 * condition
    assert_allclose(swept.linearization.gram, left @ left.T, rtol=rtol)
    slope = left @ (root * residual)
    assert_allclose(swept.linearization.rhs, slope, rtol=1e-10 + 1e-15 * condition)
    assert_allclose(swept.held[:2, :2], (weights * shared) @ shared.T, rtol=1e-13)
    moved = (root * shared) + swept.response.T @ (root * local)
    assert_allclose(moved, left, atol=1e-10 + 1e-15 * condition)


@pytest.mark.parametrize("linear", [False, True])
def test_what_the_data_do_not_determine(linear):
    """A factor that heights and a shared number have in common, and equal columns."""

    def fn(x, u, data):
        t, y = data
        return x[1] * u[0] * jnp.exp(-x[0] * t) + u[1] - y

    fit = solve_joint(fn, np.array([1.0, 1.0]), U0, DATA, linear=linear)
    plain = solve_joint(decay, X0, U0, DATA)
    assert fit.success
    assert np.array_equal(fit.determined(), [True, False])
    assert np.array_equal(fit.local_determined(), np.tile([False, True], (B, 1)))
    assert_allclose(fit.x[0], plain.x[0], rtol=1e-7)
    assert np.isinf(fit.stderr()[1])
    assert np.all(np.isinf(fit.local_stderr()[:, 0]))

    def twice(x, u, data):
        t, y = data
        return (u[0] + u[1]) * jnp.exp(-x[0] * t) + u[2] - y

    starts = np.tile([0.5, 0.5, 0.0], (B, 1))
    fit = solve_joint(twice, X0, starts, DATA, linear=linear)
    assert fit.success
    assert_allclose(fit.x, plain.x, rtol=1e-7)
    assert np.all(np.isinf(fit.local_stderr()[:, :2]))
    assert np.all(np.isfinite(fit.local_stderr()[:, 2]))
    assert_allclose(np.sum(fit.local[:, :2], axis=1), plain.local[:, 0], rtol=1e-6)


# Success


def judged(fit, fn, data, bounds, local_bounds):
    """The certificate of a joint fit, by NumPy alone."""
    x, u = np.asarray(fit.x), np.asarray(fit.local)
    size, blocks = len(x), len(u)
    z = np.concatenate([x, u.ravel()])

    def dense(z):
        return at_once(fn)((z[:size], z[size:].reshape(u.shape)), data)

    residual = np.asarray(dense(z)).reshape(blocks, -1)
    jacobian = np.asarray(jax.jit(jax.jacfwd(dense))(z)).reshape(*residual.shape, -1)
    gradient = np.einsum("bmk,bm->k", jacobian, residual)
    norms = np.sqrt(np.einsum("bmk,bmk->k", jacobian, jacobian))
    lower, upper = (
        np.append(np.broadcast_to(own, x.shape), np.broadcast_to(other, u.shape))
        for own, other in zip(bounds, local_bounds, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # what moves nothing
        moved = np.clip(z - gradient / norms**2, lower, upper) - z
    moved = np.where(norms > 0, moved, 0)
    terms, rounding = norms * np.abs(moved), 8 * np.finfo(float).eps * norms * np.abs(z)
    lengths = np.sqrt(np.sum(residual**2, axis=1))
    own_terms, own_rounding = (v[size:].reshape(u.shape) for v in (terms, rounding))
    limit = 1e-6 * np.sqrt(np.sum(lengths**2)) + np.sum(rounding[:size])
    own_limits = 1e-6 * lengths + np.sum(own_rounding, axis=1)
    inside = np.all((z >= lower) & (z <= upper))
    return (
        inside
        and np.max(terms[:size]) <= limit
        and np.all(np.max(own_terms, axis=1) <= own_limits)
    )


def bump(x, u, data):
    """Peaks of one width, each at its own place, on one background."""
    t, y = data
    return u[0] * jnp.exp(-0.5 * ((t - u[1]) / x[0]) ** 2) + x[1] - y


BUMPS = [0.05, -1.0], [2.0, 1.0]
PLACES = [0.0, 0.2], [2.5, 3.5]


@pytest.mark.parametrize("are_bounded", [False, True])
def test_success_is_a_certificate(are_bounded):
    """Hard starts: all that is called a success is one, by NumPy."""
    rng = np.random.default_rng(4)
    limits = (BUMPS, PLACES) if are_bounded else ((-np.inf, np.inf),) * 2
    own = {"bounds": BUMPS, "local_bounds": PLACES} if are_bounded else {}
    successes = 0
    for _ in range(25):
        truth = np.array([rng.uniform(0.3, 1), rng.uniform(-0.5, 0.5)])
        u = np.stack([rng.uniform(1, 3, 6), rng.uniform(0.8, 3.2, 6)], axis=1)
        clean = at_once(bump)((truth, u), (T, np.zeros((6, M))))
        y = np.asarray(clean) + rng.choice([1e-6, 0.1]) * rng.normal(size=(6, M))
        x0 = truth * np.exp(rng.normal(size=2))
        u0 = u * np.exp(rng.normal(size=u.shape))
        if are_bounded:
            x0, u0 = np.clip(x0, *np.array(BUMPS)), np.clip(u0, *np.array(PLACES))
        fit = solve_joint(bump, x0, u0, (Shared(T), y), **own)
        if fit.success:
            successes += 1
            assert judged(fit, bump, (T, y), *map(np.asarray, limits))
    assert successes >= 15


def test_a_block_that_cannot_be_evaluated_is_named():
    broken = Y.copy()
    broken[3, 5] = np.nan
    for linear in (False, True):
        fit = solve_joint(decay, X0, U0, (Shared(T), broken), linear=linear)
        assert fit.status == Status.NONFINITE_START
        assert "Blocks 3 could not be fitted: NONFINITE_START." in fit.message
        assert np.isinf(fit.cost)
        assert np.all(
            np.isnan(fit.local_covariance()) | ~np.isfinite(fit.local_stderr()).all()
        )


def test_a_step_to_where_a_block_has_no_value_is_refused():
    def fn(x, u, data):
        t, y, edge = data
        return 2 * jnp.sqrt(x[0] - edge) * t + u[0] * jnp.sin(t) + u[1] - y

    edges = np.linspace(0, 0.9, B)
    y = 2 * np.sqrt(1 - edges)[:, None] * T + 0.1 * NOISE
    fit = solve_joint(fn, np.array([30.0]), U0, (Shared(T), y, edges))
    assert fit.success
    assert_allclose(fit.x, 1, atol=0.1)


def test_statuses_of_bad_starts():
    fit = solve_joint(decay, X0, U0, DATA, local_bounds=(2.0, 3.0))
    assert fit.status == Status.INVALID_BOUNDS
    assert "INVALID_BOUNDS" in fit.message
    fit = solve_joint(decay, X0, U0, DATA, bounds=(2.0, 3.0))
    assert fit.status == Status.INVALID_BOUNDS
    fit = solve_joint(decay, X0, U0, DATA, options=Options(max_steps=1))
    assert fit.status == Status.MAX_STEPS


# Transformations


def of_factor(s, linear, local_bounds=None):
    """A joint fit to data that move with a number."""
    few = Y[:5] * (1 + s) + s**2 * T
    fit = solve_joint(
        decay,
        X0,
        U0[:5],
        (Shared(T), few),
        linear=linear,
        local_bounds=local_bounds,
        bounds=(0.0, 5.0),
    )
    return jnp.concatenate(
        [
            fit.x,
            fit.local.ravel(),
            fit.cost[None],
            fit.stderr(),
            jnp.ravel(fit.local_stderr()),
        ]
    )


@pytest.mark.parametrize("linear", [False, True])
def test_derivatives(linear):
    """Second ones too: forward through forward, and through reverse where JAX can."""
    move = functools.partial(of_factor, linear=linear)
    assert_derivatives(move, second=jax.__version_info__ >= (0, 12))
    slope = jax.jit(jax.jacfwd(move))
    expected = (np.asarray(slope(0.3 + 1e-4)) - np.asarray(slope(0.3 - 1e-4))) / 2e-4
    second = jax.jit(jax.jacfwd(jax.jacfwd(move)))(0.3)
    assert_allclose(second, expected, atol=1e-5 * np.max(np.abs(expected)))


def test_derivatives_at_bounds():
    """What lies on a bound stays there, and the rest moves."""
    limits = [0.0, -0.3], [2.6, 0.3]
    assert_derivatives(functools.partial(of_factor, linear=False, local_bounds=limits))


def test_a_derivative_by_what_is_closed_over():
    def fit(s):
        def fn(x, u, data):
            t, y = data
            return u[0] * jnp.exp(-x[0] * s * t) + u[1] - y

        return solve_joint(fn, X0, U0[:5], (Shared(T), Y[:5]), linear=True).x

    assert_derivatives(fit, at=1.0)


@pytest.mark.parametrize("linear", [False, True])
def test_jit_and_vmap(linear):
    def fit(y):
        return solve_joint(decay, X0, U0[:5], (Shared(T), y), linear=linear)

    few = np.stack([Y[:5], Y[5:10], 2 * Y[:5]])
    batch = jax.vmap(fit)(few)
    assert isinstance(batch, JointSolution)
    for k in range(3):
        alone = fit(few[k])
        assert_allclose(batch.x[k], alone.x, rtol=1e-12)
        assert_allclose(batch.local[k], alone.local, rtol=1e-10)
        assert_allclose(batch.local_stderr()[k], alone.local_stderr(), rtol=1e-9)
        assert_allclose(batch.covariance()[k], alone.covariance(), rtol=1e-9)
    inside = jax.jit(lambda y: fit(y).local)(few[0])
    assert_allclose(inside, batch.local[0], rtol=1e-12)


@pytest.mark.parametrize("linear", [False, True])
def test_chunks_and_devices(linear):
    mesh = Mesh(np.array(jax.devices()), ("blocks",))
    whole = solve_joint(decay, X0, U0, DATA, linear=linear, rows=Whole())
    ways = Chunked(7), Sharded(mesh, "blocks"), Sharded(mesh, "blocks", 2)
    for rows in ways:
        fit = solve_joint(decay, X0, U0, DATA, linear=linear, rows=rows)
        assert fit.success
        assert fit.count == whole.count
        assert fit.local.shape == (B, 2)
        assert_allclose(fit.x, whole.x, rtol=1e-11)
        assert_allclose(fit.local, whole.local, rtol=1e-9, atol=1e-10)
        assert_allclose(fit.stderr(), whole.stderr(), rtol=1e-9)
        assert_allclose(fit.local_stderr(), whole.local_stderr(), rtol=1e-9)


def test_a_mixture_on_devices():
    mesh = Mesh(np.array(jax.devices()), ("blocks",))
    arguments = exponentials, np.array([0.3, 3.0]), NO_START, MANY
    whole = solve_joint(*arguments, linear=True)
    fit = solve_joint(*arguments, linear=True, rows=Sharded(mesh, "blocks"))
    assert fit.success
    assert fit.count == whole.count
    assert_allclose(fit.x, whole.x, rtol=1e-11)
    assert_allclose(fit.local, whole.local, rtol=1e-10)
    assert_allclose(fit.local_stderr(), whole.local_stderr(), rtol=1e-9)


# Bad input

WRONG = {
    "starts": ({"u0": U0[:3]}, ValueError, "u0 has the shape .3, 2.*50 blocks"),
    "bounds": ({"linear": True, "local_bounds": (0.0, 1.0)}, ValueError, "Leave out"),
    "loss": ({"linear": True, "loss": losses.Huber(1.0)}, ValueError, "Leave out"),
    "jac": ({"options": Options(jac=lambda *a: 0)}, ValueError, "custom_jvp"),
    "function": ({"fn": 3.0}, TypeError, "fn"),
    "data": ({"data": (T[0], Y)}, ValueError, "jaxfit.Shared"),
    "lengths": ({"data": (T, Y)}, ValueError, "numbers of rows differ|blocks"),
    "whole": ({"u0": np.ones((B, 2), int)}, TypeError, "Write 1.0 instead of 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name):
    changed, kind, words = WRONG[name]
    arguments = {"fn": decay, "x0": X0, "u0": U0, "data": DATA} | changed
    with pytest.raises(kind, match=words):
        solve_joint(**arguments)
