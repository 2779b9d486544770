"""Derivatives of a solution, against finite differences and closed forms."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import START, decay, exponential, linear, residual

from jaxfit import Chunked, Options, Sharded, Shared, losses, solve, solve_batch

ROWS = 60
(T, Y), TRUTH = decay(rows=ROWS, noise=0.3)
WAVE = np.cos(np.arange(ROWS))
STEP = 1e-4


def central(f, at=0.3):
    """A central difference."""
    return (np.asarray(f(at + STEP)) - np.asarray(f(at - STEP))) / (2 * STEP)


def assert_derivatives(f, at=0.3, second=False):
    """Forward, reverse, and on demand second derivatives of a function of a number."""

    @jax.jit
    def both(s):  # which has the fit once; jvp and vjp are made like that
        value, push = jax.linearize(f, s)
        pull = jax.linear_transpose(push, s)
        units = jnp.eye(value.size).reshape(value.size, *value.shape)
        return value, push(1.0), jax.vmap(pull)(units)[0].reshape(value.shape)

    expected = central(lambda s: both(s)[0], at)
    scale = np.max(np.abs(expected))
    assert scale > 0
    _, forward, reverse = both(at)
    np.testing.assert_allclose(forward, expected, atol=1e-6 * scale)
    np.testing.assert_allclose(reverse, forward, atol=1e-9 * scale)
    if second:
        slope = jax.jit(jax.jacrev(f))
        expected = central(slope, at)
        scale = np.max(np.abs(expected))
        found = jax.jit(jax.hessian(f))(at)
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


INSIDE = np.array([1.0, 2.0, 0.3])  # of all bounds


def everything(fit):
    """All that is computed from a solution and can move, as one vector."""
    standard = jnp.ravel(fit.stderr())
    return jnp.concatenate(
        [jnp.ravel(fit.x), fit.cost[None], standard, jnp.ravel(fit.covariance())]
    )


def x_and_cost(fit):
    return jnp.append(fit.x, fit.cost)


def moved(s):
    return T, Y + s * WAVE


CASES = {
    "plain": {},
    "weights": {"weights": np.linspace(0.5, 2, ROWS)},
    "huber": {"loss": losses.Huber(0.2)},
    "soft_l1": {"loss": losses.SoftL1(0.3)},
    "cauchy": {"loss": losses.Cauchy(0.5)},
    "arctan": {"loss": losses.Arctan(0.8)},
    "tukey": {"loss": losses.Tukey(2.0)},
    "lower bound": {"bounds": ([0.0, 1.8, -9.0], 9.0)},
    "upper bound": {"bounds": (-9.0, [9.0, 9.0, 0.4])},
    "bounds far away": {"bounds": (-9.0, 9.0)},
    "fixed": {"bounds": ([0.0, 0.0, 0.3], [9.0, 9.0, 0.3])},
    "chunks": {"rows": Chunked(7)},
}


@pytest.mark.parametrize("case", CASES)
def test_data(case):
    fit = functools.partial(solve, residual, INSIDE, **CASES[case])
    look = everything if case in ("plain", "fixed", "chunks") else x_and_cost
    assert_derivatives(lambda s: look(fit(moved(s))), second=case == "plain")


def test_shards():
    rows = Sharded(Mesh(np.array(jax.devices()), ("rows",)), "rows", 4)
    f = jax.jit(lambda s: everything(solve(residual, START, moved(s), rows=rows)))
    g = jax.jit(lambda s: everything(solve(residual, START, moved(s))))
    expected = jax.jit(jax.jacfwd(g))(0.3)
    scale = np.max(np.abs(expected))
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(
            jax.jit(jacobian(f))(0.3), expected, atol=1e-9 * scale
        )


def test_inside_a_shard_map():
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    data = jax.tree.map(lambda leaf: leaf[:56], (T, Y))

    def fit(data, rows=None):
        return jnp.sum(solve(residual, START, data, rows=rows).x ** 2)

    sharded = jax.shard_map(
        functools.partial(fit, rows=Sharded(None, "rows")),
        mesh=mesh,
        in_specs=P("rows"),
        out_specs=P(),
    )
    found, expected = (jax.jit(jax.grad(f))(data) for f in (sharded, fit))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


# Everything continuous


class Model(eqx.Module):
    rate: jax.Array

    def __call__(self, x, data):
        return residual(x, data) * (1 + self.rate * data[0])

    def method(self, x, data):
        return self(x, data)


@jax.jit
def jitted(k, x, data):
    return residual(x, data) * (1 + k * data[0])


def closure(k):
    return lambda x, data: jitted(k, x, data)


FUNCTIONS = {
    "closure": closure,
    "module": Model,
    "bound method": lambda k: Model(k).method,
    "Partial": lambda k: jax.tree_util.Partial(jitted, k),
    "jitted": lambda k: jax.jit(closure(k)),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_the_function_holds(kind):
    def f(k):
        return solve(FUNCTIONS[kind](k), START, (T, Y)).x

    assert_derivatives(f)


def test_the_literal_jit_of_solve():
    fit = jax.jit(solve)

    def f(k):
        return fit(jax.tree_util.Partial(jitted, k), START, (T, Y)).x

    np.testing.assert_allclose(f(0.0), solve(residual, START, (T, Y)).x, rtol=1e-10)
    assert_derivatives(f)


@pytest.mark.parametrize(
    "setting",
    [
        lambda s: {"loss": losses.SoftL1(s)},
        lambda s: {"weights": 1 + s * T},
        lambda s: {"bounds": ([0.0, 0.0, -1.0], jnp.stack([9.0, 9.0, s + 0.1]))},
        lambda s: {"bounds": (jnp.stack([0.0, s + 1.5, -1.0]), 9.0)},
    ],
)
def test_settings(setting):
    def f(s):
        return x_and_cost(solve(residual, INSIDE, (T, Y), **setting(s)))

    assert_derivatives(f)


def test_a_fixed_parameter_moves_as_its_number():
    def f(b):
        return solve(residual, START, (T, Y), bounds=([0.0, 0.0, b], [9.0, 9.0, b])).x

    assert_derivatives(f)
    assert jax.jit(jax.jacfwd(f))(0.3)[2] == 1


def test_starts_and_tolerances_do_not_count():
    def f(x0, ftol, scale):
        options = Options(ftol=ftol, x_scale=scale)
        return jnp.sum(solve(residual, x0, (T, Y), options=options).x)

    scale = np.ones(3)
    found = jax.jit(jax.grad(f, (0, 1, 2)))(START, 1e-19, scale)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found))


def test_shared_and_pytrees():
    data = {"t": T, "y": Y, "offset": Shared({"by": np.float64(0.2)})}

    def f(x, data):
        t, y = data["t"], data["y"]
        return x["a"] * jnp.exp(-x["b"] * t) + data["offset"]["by"] - y

    def fit(data):
        x = solve(f, {"a": 1.0, "b": 1.0}, data, rows=Chunked(16)).x
        return x["a"] + x["b"]

    found = jax.jit(jax.grad(fit))(data)["offset"].leaf["by"]

    def at(offset):
        return jax.jit(fit)(data | {"offset": Shared({"by": np.float64(offset)})})

    assert abs(found / central(at, 0.2) - 1) < 1e-6


# Closed forms


def test_a_linear_fit():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 3)), rng.normal(size=20)
    inverse = np.linalg.inv(a.T @ a)
    found = jax.jit(jax.jacrev(lambda b: solve(linear, np.zeros(3), (a, b)).x))(b)
    np.testing.assert_allclose(found, inverse @ a.T, atol=1e-12)
    x = inverse @ a.T @ b

    def cost(b):
        return solve(linear, np.zeros(3), (a, b)).cost

    np.testing.assert_allclose(jax.jit(jax.grad(cost))(b), b - a @ x, atol=1e-12)
    hat = np.eye(20) - a @ inverse @ a.T
    np.testing.assert_allclose(jax.jit(jax.hessian(cost))(b), hat, atol=1e-11)


def test_large_residuals_need_the_exact_hessian():
    def fit(s, derivative):
        options = Options(derivative=derivative)
        data = (T, Y + 3 * np.sin(5 * T) + s * WAVE)
        return solve(residual, START, data, options=options).x

    # of fourth order: the fit converges slowly, and a short step would show it
    f, h = jax.jit(lambda s: fit(s, "exact")), 2e-3
    near, far = (np.asarray(f(0.3 + k * h) - f(0.3 - k * h)) for k in (1, 2))
    expected = (8 * near - far) / (12 * h)
    scale = np.max(np.abs(expected))
    exact, approximate = (
        jax.jit(jax.jacfwd(functools.partial(fit, derivative=name)))(0.3)
        for name in ("exact", "gauss-newton")
    )
    assert np.max(np.abs(exact - expected)) < 1e-6 * scale
    assert np.max(np.abs(approximate - expected)) > 0.02 * scale


# Where there is no derivative


def test_a_failed_fit_does_not_move():
    y = jnp.stack([jnp.asarray(Y).at[3].set(jnp.nan), jnp.asarray(Y)])

    def f(k, y):
        return jnp.sum(everything(solve(closure(k), START, (T, y)))[:3])

    slopes, rows = jax.jit(jax.vmap(jax.grad(f, (0, 1)), in_axes=(None, 0)))(0.1, y)
    assert slopes[0] == 0
    assert np.all(rows[0] == 0)
    assert slopes[1] != 0

    def shared(k):
        return jnp.sum(jax.vmap(functools.partial(f, k))(y))

    np.testing.assert_allclose(jax.jit(jax.grad(shared))(0.1), slopes[1], rtol=1e-12)


def test_an_undetermined_direction_does_not_move():
    def only_a_sum(x, y):
        return (x[0] + 2 * x[1]) * jnp.ones(5) - y

    y = np.full(5, 3.0)

    def f(y):
        return solve(only_a_sum, np.array([1.0, 1.0]), y).x

    for jacobian in (jax.jacfwd, jax.jacrev):
        found = jax.jit(jacobian(f))(y)
        np.testing.assert_allclose(found, np.outer([0.2, 0.4], np.ones(5) / 5))

    def unused(x, y):
        return x[:1] - y

    found = jax.jit(jax.jacrev(lambda y: solve(unused, np.ones(2), y).x))(y)
    np.testing.assert_allclose(found, np.outer([1, 0], np.full(5, 0.2)), atol=1e-14)


def test_integers_are_left_alone():
    def f(s):
        fit = solve(residual, START, moved(s))
        integers = fit.status + fit.nfev + fit.steps
        return fit.x[0] * integers.astype(float) + fit.optimality

    found = jax.jit(jax.grad(f))(0.3)
    fit = solve(residual, START, moved(0.3))
    number = int(fit.status + fit.nfev + fit.steps)
    expected = central(jax.jit(lambda s: solve(residual, START, moved(s)).x[0]))
    np.testing.assert_allclose(found, number * expected, rtol=1e-6)


# Composition


def test_scan():
    def f(s):
        def step(x, _):
            return solve(residual, START, moved(s * x[0])).x, None

        return jax.lax.scan(step, jnp.asarray(START), None, length=3)[0]

    assert_derivatives(f)


def test_vmap_of_grad_and_grad_of_vmap():
    def f(s):
        return jnp.sum(solve(residual, START, moved(s)).x ** 2)

    values = jnp.array([0.1, 0.2, 0.3])
    each = jax.jit(jax.vmap(jax.grad(f)))(values)
    at_once = jax.jit(jax.grad(lambda v: jnp.sum(jax.vmap(f)(v))))(values)
    np.testing.assert_allclose(each, at_once, rtol=1e-10)
    np.testing.assert_allclose(each[2], central(jax.jit(f)), rtol=1e-6)


def test_a_solve_inside_the_residual_of_a_solve():
    """Variable projection: the outer fit sees the best inner parameters."""

    def outer(rate, data):
        t, y = data

        def inner(c, _):
            return c[0] * jnp.exp(-rate * t) + c[1] - y

        c = solve(inner, np.ones(2)).x
        return c[0] * jnp.exp(-rate * t) + c[1] - y

    def f(s):
        return solve(outer, 1.0, moved(s)).x

    joint = solve(residual, START, moved(0.3)).x
    np.testing.assert_allclose(jax.jit(f)(0.3), joint[1], rtol=1e-8)
    assert_derivatives(f)


def test_a_training_loop():
    """An instrument's gain is learned through many fits, by optax."""
    gain = 1.3
    amplitudes = np.linspace(1, 2, 4)
    ys = gain * amplitudes[:, None] * np.exp(-1.3 * T)

    def loss(gain):
        def model(x, y):
            return gain * x[0] * jnp.exp(-x[1] * T) - y

        fits = solve_batch(model, np.ones(2), ys, in_axes=(None, 0), lanes=4)
        return jnp.mean((fits.x[:, 0] - amplitudes) ** 2)

    optimizer = optax.sgd(0.3)

    @jax.jit
    def step(gain, memory):
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(jax.grad(loss)(gain), memory)
        return optax.apply_updates(gain, updates), memory

    found = jnp.asarray(1.0)
    memory = optimizer.init(found)
    for _ in range(40):
        found, memory = step(found, memory)
    assert abs(float(found) - gain) < 1e-3


# Batches

FITS = 20
YS = np.asarray(exponential(TRUTH, T)) + 0.2 * np.random.default_rng(0).normal(
    size=(FITS, ROWS)
)


def batch_loss(k, ys, keep, mesh, loop):
    """A number from a batch of fits, and from a loop of single ones."""
    bounds = ([0.0, 0.0, 0.0], [20.0, 9.0, 0.5])

    def model(x, y):
        return (exponential(x, T) - y) * (1 + k * T)

    def kept(fit):
        return {"x": fit.x, "e": fit.stderr(), "c": fit.cost}

    if loop:
        found = jax.vmap(lambda y: kept(solve(model, START, y, bounds=bounds)))(ys)
    else:
        axis = None if mesh is None else "fits"
        setting = {"bounds": bounds, "lanes": 8, "mesh": mesh, "axis": axis}
        setting["keep"] = kept if keep else None
        found = solve_batch(model, START, ys, in_axes=(None, 0), **setting)
        found = found if keep else jax.vmap(kept)(found)
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(found))


@pytest.fixture(scope="module")
def of_a_loop():
    f = functools.partial(batch_loss, keep=False, mesh=None, loop=True)
    return jax.jit(jax.grad(f, (0, 1)))(0.1, YS)


@pytest.mark.parametrize(("keep", "devices"), [(False, 1), (True, 1), (True, 2)])
def test_a_batch(of_a_loop, keep, devices):
    mesh = None
    if devices > 1:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("fits",))
    f = functools.partial(batch_loss, keep=keep, mesh=mesh, loop=False)
    slope, rows = jax.jit(jax.grad(f, (0, 1)))(0.1, YS)
    np.testing.assert_allclose(slope, of_a_loop[0], rtol=1e-9)
    np.testing.assert_allclose(rows, of_a_loop[1], atol=1e-10)
    if not keep:
        forward = jax.jit(lambda k: jax.jvp(lambda k: f(k, YS), (k,), (1.0,))[1])(0.1)
        np.testing.assert_allclose(forward, slope, rtol=1e-9)


def test_a_bad_pixel_in_a_batch():
    bad = np.array(YS)
    bad[3, 2] = np.nan

    def f(k, ys):
        def model(x, y):
            return (exponential(x, T) - y) * (1 + k * T)

        fits = solve_batch(model, START, ys, in_axes=(None, 0), lanes=8)
        return jnp.sum(jnp.where(fits.success, fits.x[:, 0], 0))

    slope = jax.jit(jax.grad(f))
    found, without = slope(0.1, bad), slope(0.1, np.delete(bad, 3, axis=0))
    np.testing.assert_allclose(found, without, rtol=1e-9)


def test_a_wrong_kind_of_derivative():
    with pytest.raises(ValueError, match="derivative is 'finite'"):
        Options(derivative="finite")


def test_memory_in_chunks():
    """Reverse mode evaluates a chunk again, instead of keeping what it computed."""
    rows, size = 200_000, 2048
    row = jax.ShapeDtypeStruct((rows,), np.float64)

    def loss(k, data):
        return jnp.sum(solve(closure(k), START, data, rows=Chunked(size)).x)

    gradient = jax.jit(jax.grad(loss)).lower(0.1, (row, row)).compile()
    assert gradient.memory_analysis().temp_size_in_bytes < 50 * size * 8 + 300_000
