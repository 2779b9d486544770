"""Minima on kinks: found, followed and certified, and never claimed elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import OptimizeWarning

import jaxfit
from jaxfit import Options, Status, losses

FITS = 100
POINTS = np.arange(40.0)


def broken(p, x):
    left, right = p[2] * (x - p[0]), p[3] * (x - p[0])
    return p[1] + jnp.where(x < p[0], left, right)


def vee(p, x):
    return p[0] * jnp.abs(x - p[1]) + p[2]


MODELS = {  # model, its start, the truth with the kink at c
    "broken": (broken, [20.5, 1.0, 0.0, 0.0], lambda c: [c, 1.0, 0.3, -2.0]),
    "vee": (vee, [1.0, 20.5, 0.0], lambda c: [2.0, c, 0.0]),
}


@functools.cache
def residual(name):
    model = MODELS[name][0]
    return lambda p, y: model(p, POINTS) - y


@functools.cache
def simulated(name):
    """Data whose kink lies at a point, where many fits end on that point."""
    model, _, truth = MODELS[name]
    rng = np.random.default_rng(0)
    places = rng.integers(10, 30, FITS).astype(float)
    y = np.stack([model(truth(c), POINTS) for c in places])
    return y + 0.1 * rng.normal(size=y.shape)


@functools.cache
def fitted(name):
    start = np.tile(MODELS[name][1], (FITS, 1))
    return jaxfit.solve_batch(residual(name), start, simulated(name))


def on_kinks(solution):
    return np.flatnonzero(solution.status == Status.KINK)


@functools.cache
def _costs(fn):
    return jax.jit(jax.vmap(lambda p, data: 0.5 * jnp.sum(fn(p, data) ** 2), (0, None)))


def lowest_near(fn, x, data, norms, rng):
    """The lowest cost of 400 points at each of several distances."""
    size = np.maximum(norms, 1e-3 * np.max(norms))
    costs = _costs(fn)
    reach = np.sqrt(np.sum(np.square(fn(x, data))))
    ways = rng.normal(size=(400, len(x)))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    distances = (1e-7, 1e-6, 1e-5, 1e-4)
    return min(np.min(costs(x + d * reach * ways / size, data)) for d in distances)


@pytest.mark.parametrize("name", MODELS)
def test_minima_on_kinks_are_found(name):
    solution = fitted(name)
    assert np.all(solution.success)
    kinks = on_kinks(solution)
    assert len(kinks) > 3
    rng = np.random.default_rng(1)
    for k in kinks[:8]:
        x, y = np.asarray(solution.x[k]), simulated(name)[k]
        norms = np.sqrt(np.diagonal(solution.linearization.normal[k])[: len(x)])
        lowest = lowest_near(residual(name), x, y, norms, rng)
        assert lowest >= solution.cost[k] * (1 - 1e-9)


def test_it_is_the_best_of_all_breakpoints():
    """With the breakpoint on a datum the rest is linear least squares."""
    solution, data = fitted("broken"), simulated("broken")
    for k in on_kinks(solution):
        x0 = solution.x[k, 0]
        columns = [np.ones(40), np.minimum(POINTS - x0, 0), np.maximum(POINTS - x0, 0)]
        rest, left, *_ = np.linalg.lstsq(np.stack(columns, 1), data[k], rcond=None)
        assert abs(x0 - np.round(x0)) < 1e-7
        np.testing.assert_allclose(solution.x[k, 1:], rest, atol=1e-6)
        np.testing.assert_allclose(2 * solution.cost[k], left[0], rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_alone_as_in_a_batch(name):
    solution = fitted(name)
    for k in on_kinks(solution)[:2]:
        alone = jaxfit.solve(
            lambda p, data: MODELS[name][0](p, data[0]) - data[1],
            np.array(MODELS[name][1]),
            (POINTS, simulated(name)[k]),
        )
        assert alone.status == Status.KINK
        np.testing.assert_allclose(alone.x, solution.x[k], rtol=1e-6)


def test_what_a_kink_holds_has_no_variance():
    solution = fitted("broken")
    k = on_kinks(solution)[0]
    errors = solution.stderr()[k]
    assert np.isinf(errors[0])
    x0 = float(solution.x[k, 0])
    columns = [np.ones(40), np.minimum(POINTS - x0, 0), np.maximum(POINTS - x0, 0)]
    columns = np.stack(columns, 1)
    variance = 2 * solution.cost[k] / (40 - 4)
    expected = np.sqrt(np.diagonal(np.linalg.inv(columns.T @ columns)) * variance)
    np.testing.assert_allclose(errors[1:], expected, rtol=1e-4)
    assert np.all(solution.determined()[k])


def test_a_descent_along_the_diagonal_alone():
    """Each coordinate alone is at its minimum everywhere on the diagonal."""

    def fn(p, _):
        x, y = p
        return jnp.stack([(x + y - 5) / np.sqrt(10), jnp.abs(x - y) + 1])

    for start in ([0.0, 0.0], [-3.0, 1.0], [7.0, 7.0]):
        solution = jaxfit.solve(fn, np.array(start))
        assert solution.status == Status.KINK
        np.testing.assert_allclose(solution.x, [2.5, 2.5], atol=1e-5)
        assert np.all(np.isinf(solution.stderr(absolute=True)))


def test_no_derivative():
    name = "vee"
    k = on_kinks(fitted(name))[0]

    def answer(y):
        return jaxfit.solve(residual(name), np.array(MODELS[name][1]), y).x

    x, moved = jax.jvp(answer, (simulated(name)[k],), (np.ones(40),))
    np.testing.assert_allclose(x, fitted(name).x[k], rtol=1e-6)
    assert np.all(np.isnan(moved))


# Where there is none


def outer(z, sign):
    """Residuals of z: with a minimum on a kink, and with none, by the kind."""
    return {
        "kink": jnp.abs(z) * sign,
        "jump": jnp.where(z > 0, z + 0.3 * sign, z * sign),
        "jump and kink": jnp.where(z > 0, jnp.abs(z) + 0.1 * sign, jnp.abs(z)),
        "small jump": jnp.where(z > 0, jnp.abs(z) + 1e-9 * sign, -sign * z),
        "sharp": jnp.sqrt(z * z + 1e-12) * sign,
        "wrong slope": z + jax.lax.stop_gradient(z) * sign,
        "no slope": jnp.abs(jax.lax.stop_gradient(z)) * sign + 0.1 * z,
        "stairs": jnp.floor(z * 50) / 50 + 0.2 * z,
        "rough": z + 1e-7 * jnp.sin(1e9 * z),
    }


KINDS = tuple(outer(jnp.ones(1), 1.0))
EACH = 200


def of_a_kind(p, data):
    kind, a, b, c, d, sign = data
    return a @ p - b + jnp.stack(list(outer(c @ p - d, sign).values()))[kind]


@functools.cache
def of_all_kinds(n=2, m=4):
    """Random functions of every kind, and their fits."""
    rng, count = np.random.default_rng(0), EACH * len(KINDS)
    data = (
        np.repeat(np.arange(len(KINDS)), EACH),
        0.5 * rng.normal(size=(count, m, n)),
        rng.normal(size=(count, m)),
        rng.normal(size=(count, m, n)),
        rng.normal(size=(count, m)),
        rng.choice([-1.0, 1.0], size=(count, m)),
    )
    start = rng.normal(size=(count, n))
    return data, jaxfit.solve_batch(of_a_kind, start, data)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_nothing_else_is_called_a_kink(kind):
    first = EACH * KINDS.index(kind)
    status = of_all_kinds()[1].status[first : first + EACH]
    assert not np.any(status == Status.KINK)


def test_random_kinks_are_found_and_are_minima():
    data, solution = of_all_kinds()
    kinks = on_kinks(solution)
    assert np.all(kinks < EACH)
    lost = np.isin(solution.status[:EACH], [Status.STALLED, Status.MAX_STEPS])
    assert len(kinks) > 0.85 * (len(kinks) + np.sum(lost))
    rng = np.random.default_rng(1)
    for k in kinks[:20]:
        x = np.asarray(solution.x[k])
        one = tuple(leaf[k] for leaf in data)
        norms = np.sqrt(np.diagonal(solution.linearization.normal[k])[: len(x)])
        lowest = lowest_near(of_a_kind, x, one, norms, rng)
        assert lowest >= solution.cost[k] * (1 - 1e-8)


# Elsewhere


@pytest.mark.parametrize(
    "settings",
    [
        {"bounds": (np.array([-1e3, -1e3, 0.05]), np.inf)},
        {"loss": losses.Huber(0.15)},
        {"rows": jaxfit.Chunked(16)},
        {"weights": np.linspace(1, 2, 40)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_with(settings):
    """Bounds, one of them active, a loss, chunks, weights."""
    ends = []
    for k in on_kinks(fitted("vee")):
        near = fitted("vee").x[k] + np.array([0.1, 0.4, 0.1])
        solution = jaxfit.solve(
            lambda p, data: vee(p, data[0]) - data[1],
            near,
            (POINTS, simulated("vee")[k]),
            **settings,
        )
        assert solution.success
        ends.append(int(solution.status))
    assert Status.KINK in ends


def test_single_precision():
    y = simulated("vee")[on_kinks(fitted("vee"))].astype(np.float32)
    start = np.tile(np.float32(MODELS["vee"][1]), (len(y), 1))
    x = POINTS.astype(np.float32)
    solution = jaxfit.solve_batch(lambda p, y: vee(p, x) - y, start, y)
    assert np.all(solution.success)
    assert Status.KINK in solution.status


def test_people_are_told():
    y = simulated("broken")[on_kinks(fitted("broken"))[0]]

    def line(x, x0, y0, k1, k2):
        return broken((x0, y0, k1, k2), x)

    start = dict(zip(("x0", "y0", "k1", "k2"), MODELS["broken"][1], strict=True))
    fit = jaxfit.fit(line, POINTS, y, p0=start)
    assert fit.status == Status.KINK
    assert "kink" in str(fit)
    assert "degree of freedom" not in str(fit)
    assert np.isfinite(fit.values["x0"])
    with pytest.warns(OptimizeWarning, match="kink of the model.* parameter 0"):
        popt, pcov = jaxfit.curve_fit(line, POINTS, y, p0=MODELS["broken"][1])
    np.testing.assert_allclose(popt, list(fit.values.values()), rtol=1e-6)
    assert np.isinf(pcov[0, 0])
    assert np.all(np.isfinite(np.diag(pcov)[1:]))


def test_a_limit_holds():
    """A search counts its evaluations as any other trip."""
    k = on_kinks(fitted("vee"))[0]
    most = int(fitted("vee").nfev[k]) - 3
    solution = jaxfit.solve(
        residual("vee"),
        np.array(MODELS["vee"][1]),
        simulated("vee")[k],
        options=Options(max_steps=most),
    )
    assert solution.status == Status.MAX_STEPS
    assert solution.nfev == most
