"""A fit inside of everything that JAX does with functions: the same answer.

On CPUs what `jax.vmap` makes of a fit is one loop over the program of a single fit. Its
batching rule has to compose with derivatives, control flow, nesting, closed-over
tracers and `shard_map`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxfit import Options, solve, solve_batch

FITS, ROWS = 6, 9
T = np.linspace(0, 2, ROWS)
START = np.array([1.0, 0.5])
MARKED = Options(one_function=True)


def residual(x, data):
    t, y = data
    return x[0] * jnp.exp(-x[1] * t) - y


def fit(y, start=START, t=T):
    """The fit of data to an exponential: its parameters."""
    return solve(residual, start, (t, y), options=MARKED).x


def closing(y):
    """The same, of a residual function that closes over the data."""

    def own(x, _):
        return x[0] * jnp.exp(-x[1] * T) - y

    return solve(own, START, options=MARKED).x


def rate(y):
    return fit(y)[1]


def newton(y):
    """The solution by NumPy, and its derivative by the data."""
    x = np.array([2.0, 1.0])
    for _ in range(100):
        e = np.exp(-x[1] * T)
        r, J = x[0] * e - y, np.stack([e, -x[0] * T * e], axis=1)
        x = x - np.linalg.lstsq(J, r, rcond=None)[0]
    # H dx = Jᵀ dy + (dJ)ᵀ r, with H of the cost
    second = np.array([[0 * T, -T * e], [-T * e, x[0] * T**2 * e]])
    hessian = J.T @ J + second @ r
    return x, np.linalg.solve(hessian, J.T)


@functools.cache
def data():
    """Data of fits, their solutions (F, 2), and the derivatives of these (F, 2, m)."""
    rng = np.random.default_rng(0)
    scale = np.stack([rng.uniform(1.5, 2.5, FITS), rng.uniform(0.7, 1.3, FITS)])
    y = scale[0][:, None] * np.exp(-scale[1][:, None] * T)
    y = y + 0.05 * rng.normal(size=y.shape)
    x, slope = map(np.array, zip(*map(newton, y), strict=True))
    return jnp.asarray(y), x, slope


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2,), ("fits",), axis_types=(kind,))


def spread(function, check):
    return jax.shard_map(
        function,
        mesh=mesh(),
        in_specs=P("fits"),
        out_specs=P("fits"),
        check_vma=check,
    )


def total_rate(many):
    return lambda y: jnp.sum(many(y)[:, 1])


def after_scan(y):
    def step(start, y):
        x = fit(y, start)
        return x, x

    return lax.scan(step, jnp.asarray(START), y)[1]


def where_positive(y):
    return lax.cond(y[0] > 0, fit, lambda y: jnp.zeros(2), y)


def twice(y):
    def again(carry):
        k, x = carry
        return k + 1, fit(y, x)

    return lax.while_loop(lambda carry: carry[0] < 2, again, (0, jnp.asarray(START)))[1]


def one_by_one(y):
    out = jnp.zeros((FITS, 2))
    return lax.fori_loop(0, FITS, lambda i, out: out.at[i].set(fit(y[i])), out)


def chosen(index):
    y = data()[0]

    def own(x, _):
        return x[0] * jnp.exp(-x[1] * T) - y[index]

    return solve(own, START, options=MARKED).x


def batch(y):
    return solve_batch(
        residual, START, (T, y), in_axes=(None, (None, 0)), options=MARKED
    ).x


def of_batches(y):
    return jax.vmap(batch)(y.reshape(2, 3, ROWS)).reshape(FITS, 2)


def nested(y):
    """A fit of which the residual has a fit in it: scaled data have that amplitude."""

    def outer(q, _):
        return jnp.stack([fit(q[0] * y)[0] - 3.0, q[1] - fit(y)[1]])

    return solve(outer, jnp.ones(2), options=MARKED).x


VALUES = {
    "alone": lambda y: jnp.stack([fit(one) for one in y]),
    "vmap": jax.vmap(fit),
    "of vmap": lambda y: jax.vmap(jax.vmap(fit))(y.reshape(2, 3, ROWS)).reshape(-1, 2),
    "three deep": lambda y: jax.vmap(jax.vmap(jax.vmap(fit)))(
        y.reshape(1, 2, 3, ROWS)
    ).reshape(-1, 2),
    "jit between": lambda y: jax.vmap(jax.jit(jax.vmap(fit)))(
        y.reshape(2, 3, ROWS)
    ).reshape(-1, 2),
    "starts too": lambda y: jax.vmap(fit, (0, 0, None))(
        y, jnp.stack(FITS * [START]), T
    ),
    "last axis": lambda y: jax.vmap(fit, in_axes=1)(y.T),
    "closed over": jax.vmap(closing),
    "an integer closed over": lambda y: jax.vmap(chosen)(jnp.arange(FITS)),
    "scan": after_scan,
    "of scan": lambda y: jax.vmap(after_scan)(y[:, None])[:, 0],
    "cond": jax.vmap(where_positive),
    "while": jax.vmap(twice),
    "fori": one_by_one,
    "batch": batch,
    "of batches": of_batches,
    "checkpoint": jax.vmap(jax.checkpoint(fit)),
    "shard_map": spread(jax.vmap(fit), False),
    "shard_map that checks": spread(jax.vmap(fit), True),
    "batch in shard_map": spread(batch, False),
    "batch in shard_map that checks": spread(batch, True),
    "closed over in shard_map": spread(jax.vmap(closing), True),
    "of shard_map": lambda y: jax.vmap(spread(jax.vmap(fit), True))(y[None])[0],
}


@pytest.mark.parametrize("jitted", [True, False])
@pytest.mark.parametrize("name", VALUES)
def test_values(name, jitted):
    if not jitted and name in ("fori", "scan", "of scan", "while"):
        pytest.skip("compiled in any case")
    y, x, _ = data()
    function = jax.jit(VALUES[name]) if jitted else VALUES[name]
    np.testing.assert_allclose(function(y), x, rtol=1e-8)


DERIVATIVES = {
    "forward": lambda y: jnp.stack([jax.jacfwd(rate)(one) for one in y]),
    "reverse": lambda y: jnp.stack([jax.grad(rate)(one) for one in y]),
    "of vmap": jax.grad(total_rate(jax.vmap(fit))),
    "in vmap": jax.vmap(jax.grad(rate)),
    "of a batch": jax.grad(total_rate(batch)),
    "of batches": jax.grad(total_rate(of_batches)),
    "of closed over": jax.grad(total_rate(jax.vmap(closing))),
    "in vmap, closed over": jax.vmap(jax.grad(lambda y: closing(y)[1])),
    "of scan": jax.grad(total_rate(after_scan)),
    "of cond": jax.vmap(jax.grad(lambda y: where_positive(y)[1])),
    "of checkpoint": jax.grad(total_rate(jax.vmap(jax.checkpoint(fit)))),
    "of closed over in shard_map": jax.grad(
        total_rate(spread(jax.vmap(closing), True))
    ),
    "of shard_map": jax.grad(total_rate(spread(jax.vmap(fit), False))),
    "of shard_map that checks": jax.grad(total_rate(spread(jax.vmap(fit), True))),
    "in shard_map": spread(jax.vmap(jax.grad(rate)), False),
    "in shard_map that checks": spread(jax.vmap(jax.grad(rate)), True),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives(name):
    y, _, slope = data()
    np.testing.assert_allclose(
        jax.jit(DERIVATIVES[name])(y), slope[:, 1], rtol=1e-7, atol=1e-9
    )


def test_second_derivatives():
    y = data()[0]
    one = jax.jit(jax.hessian(rate))
    step = 1e-5 * np.eye(ROWS)[4]
    slope = jax.jit(jax.grad(rate))
    differences = (slope(y[1] + step) - slope(y[1] - step)) / 2e-5
    np.testing.assert_allclose(one(y[1])[4], differences, rtol=1e-5, atol=1e-8)
    many = jax.jit(jax.vmap(jax.hessian(rate)))(y)
    np.testing.assert_allclose(many[1], one(y[1]), rtol=1e-7, atol=1e-10)
    whole = jax.jit(jax.hessian(total_rate(jax.vmap(fit))))(y[:2])
    np.testing.assert_allclose(whole[1, :, 1], one(y[1]), rtol=1e-7, atol=1e-10)


def test_a_fit_in_a_fit():
    y, x, slope = data()
    expected = np.stack([3 / x[:, 0], x[:, 1]], axis=1)
    np.testing.assert_allclose(jax.jit(nested)(y[0]), expected[0], rtol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.vmap(nested))(y), expected, rtol=1e-7)
    found = jax.jit(jax.grad(lambda y: nested(y)[0]))(y[0])
    np.testing.assert_allclose(
        found, -3 / x[0, 0] ** 2 * slope[0, 0], rtol=1e-5, atol=1e-8
    )


def test_no_fits():
    y = jnp.zeros((0, ROWS))
    assert jax.jit(jax.vmap(fit))(y).shape == (0, 2)
    assert jax.vmap(fit)(y).shape == (0, 2)
    assert jax.vmap(jax.vmap(fit))(y[None]).shape == (1, 0, 2)
    assert batch(y).shape == (0, 2)


def test_a_residual_that_sees_the_batch():
    """Fits that speak to each other along the axis of `jax.vmap` stay together."""
    y, _, _ = data()

    def own(x, y):
        level = lax.pmean(jnp.mean(y), "fits")
        return x[0] * jnp.exp(-x[1] * T) - (y - level)

    def together(y):
        return solve(own, START, y, options=MARKED).x

    found = jax.jit(jax.vmap(together, axis_name="fits"))(y)
    np.testing.assert_allclose(found, jax.vmap(fit)(y - jnp.mean(y)), rtol=1e-6)


def test_the_same_bits():
    """In a batch, in another order, among others; alone it is another program."""
    y, _, _ = data()
    many = np.asarray(jax.jit(jax.vmap(fit))(y))
    np.testing.assert_array_equal(jax.jit(jax.vmap(fit))(y[::-1])[::-1], many)
    other = y.at[3].set(jnp.nan).at[0].multiply(1.1)
    found = np.asarray(jax.jit(jax.vmap(fit))(other))
    np.testing.assert_array_equal(found[[1, 2, 4, 5]], many[[1, 2, 4, 5]])
    one = jax.jit(fit)
    np.testing.assert_allclose(np.stack([one(each) for each in y]), many, rtol=1e-12)
