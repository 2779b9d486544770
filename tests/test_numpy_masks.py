"""Elements picked by a traced condition: NumPy's values, and slopes both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beside_numpy import same_as_numpy

from jaxfit._numpy.compile import speaking_numpy
from jaxfit._numpy.needs import NeedsHost
from jaxfit._programs.program import compiler_options

N = 7
GRID = np.linspace(-1, 2, N)
P = np.array([0.4, 1.3, -0.6, 0.8])  # a threshold, and what is computed with


def decay(x, p):
    y = np.zeros_like(x)
    y[x > p[0]] = p[1] * np.exp(-p[3] * (x[x > p[0]] - p[0]))
    y[x <= p[0]] = p[2]
    return y


def two_lines(x, p):
    y = x * 0 + p[3]
    m = x < p[0]
    y[m] = p[1] * x[m] + p[2]
    y[~m] = p[2] * x[~m] ** 2 - p[0]
    return y


def in_place(x, p):
    y = p[3] * x
    mask = (x > p[0]) & (x < p[0] + 1)
    y[mask] *= 2
    y[mask] += np.sin(x[mask] * p[1])
    y[x < p[2]] /= p[1]
    y[mask] **= 2
    y[mask] -= [p[1]]
    return y


def outside_the_domain(x, p):
    y = np.zeros_like(x)
    m = x > p[0]
    y[m] = p[1] * np.sqrt(x[m] - p[0]) + np.log(x[m] - p[0]) * p[3]
    z = np.full_like(x, p[2])
    z[x > p[0]] = (x[x > p[0]] - p[0]) ** p[3] / np.sqrt(x[x > p[0]] - p[0])
    return y + z


def by_places(x, p):
    y = np.zeros_like(x)
    inside = np.where(x > p[0])[0]
    y[inside] = p[1] * x[inside] + p[2]
    other = np.flatnonzero(x <= p[0])
    y[other] += np.sqrt(p[0] - x[other] + 1e-2)
    (third,) = (x > p[1]).nonzero()
    y[third] = y[third] * x[third - 3]
    y[np.nonzero(x < p[2])] = y[x < p[2]] + 1
    return y


def sums(x, p):
    z = x[x > p[0]]
    s = z.sum() + np.sum(z**2) + np.mean(z * p[1]) * np.prod(z) + z.std() + z.var()
    few = z[z < p[0] + 1]
    return x * s + few.sum() - z.size + np.cumsum(x)[-1] * (few * p[3] @ few)


def extremes(x, p):
    z = x[x >= np.minimum(p[0], x.max())] * p[1]
    return x + z.max() - np.min(z) + np.ptp(z) + np.any(z > 1) + np.all(z > 1)


def ends(x, p):
    k = np.where(x >= np.minimum(p[0], x.max()))[0]
    return p[1] * x + x[k][0] ** 2 - x[k][-1] + p[3] * x[k[0]] + x[k[-1]]


def functions(x, p):
    y, z = np.empty_like(x), x.copy()
    np.place(z, z > p[0], p[1])
    np.putmask(z, z < p[2], x * p[3])
    np.copyto(z, p[1] * x, where=x > p[1])
    y[...] = z + np.extract(x > p[0], x * p[1]).sum()
    return y


def by_pieces(x, p):
    shapes = [lambda t: p[1] * t + t.mean(), lambda t, *_: np.log(t + 3) * p[2], p[3]]
    y = np.piecewise(x, [x < p[0], x > p[1]], shapes)
    y += np.piecewise(GRID, [p[0] > GRID, p[1] < GRID], [np.exp, np.sum, p[3]])
    return y + np.piecewise(p[1], [p[1] > p[0], p[1] < p[0]], [np.log, np.exp])


def of_picked(x, p):
    m = x > p[0]
    z = x[m]
    w = np.where(z > 1, p[1] * z, np.clip(z, p[2], p[3]))
    w = w + np.interp(np.log(z - p[0]), [-1, 0, 1], p[:3]) + np.polyval(p, z)
    w += np.select([z > 1, z > p[3]], [z, z * p[1]], p[2]) + np.zeros_like(z)
    w += np.cumsum(z * p[1]) + np.sqrt(np.cumsum(z - p[0]))
    w += np.maximum(z, p[3]) + abs(-z) + (z > 1) * p[3] + np.round(z, 1) + +z
    y = np.ones_like(x)
    y[m] = w
    return y


def changed_copies(x, p):
    y, m = 1.0 * x, x > p[0]
    z = y[m]
    z *= p[1]
    z[z > 1] = p[2]
    z[z < 0.5] *= z[z < 0.5]
    z[:] = z + 1
    z += z
    w = z.copy()
    w[...] = 0
    y[m] += z + w
    np.multiply(z, 2, out=z)
    y[m] -= z
    return y


def helper(x, p):
    return p[1] * np.exp(-((x - p[0]) ** 2)) + (x.ndim if x.dtype == float else 0)


def through_a_view(x, p):
    y = np.stack([p[3] * x, x])
    row, inner = y[0], y[1, 1:-1]
    row[x > p[0]] = helper(x[x > p[0]], p)
    inner[inner < p[0]] *= p[2]
    y[1, x > p[1]] = p[3]
    y.T[x < p[2], 0] += p[1]
    return y + 0 * row


def grid(x, p):
    g = np.outer(x, p)
    g[g > p[0]] = np.sqrt(g[g > p[0]] - p[0]) * p[1]
    g[x < p[2]] = p * 2
    g[x > p[1]] = g[x > p[1]] * p + g[x > p[1]][:, :1] + [[1, 2, 3, 4]]
    g[np.where(g < p[2])] = p[3]
    return g + g[x > p[0]].sum(axis=0) + np.sum(g[x > p[0]], axis=1).sum()


def other_kinds(x, p):
    k = np.arange(x.size) * (1 + 0 * x.astype(int))
    m = x > p[0]
    k[m] = 3 * k[m] // 2 + x[m]
    z = x + 1j * p[1]
    z[m] = np.exp(1j * z[m]) * z[m].real
    return np.abs(z[m]).sum() * k + z.real + np.sum(k[m]) + np.mean(k[m] > 3)


def twice_not_the_same_object(x, p):
    y = p[1] * x
    y[np.exp(x) > np.exp(p[0])] = np.log(x[np.exp(x) > np.exp(p[0])] + 9) * p[2]
    y[p[3] * x > p[0]] += x[x * p[3] > p[0]]
    return y


MODELS = (
    *(decay, two_lines, in_place, outside_the_domain, by_places, sums, extremes, ends),
    *(functions, by_pieces, of_picked, changed_copies, through_a_view, grid),
    *(other_kinds, twice_not_the_same_object),
)
DRAWN = np.random.default_rng(3).uniform(-2, 2, (3, N))
DATA = {  # x by which elements are above the threshold
    "some": DRAWN[0],
    "other": DRAWN[1],
    "sorted": np.sort(DRAWN[2]),
    "none": -np.abs(DRAWN[0]) - 0.1,
    "all": np.abs(DRAWN[1]) + 1.4,
}


def of_model(model, x, p):
    """Value, and the slopes of its sum with weights, forwards and backwards."""
    function = speaking_numpy(model)
    value, slope = jax.jvp(lambda p: function(x, p), (p,), (jnp.cos(p),))
    weights = jnp.cos(jnp.arange(value.size)).reshape(value.shape)
    gradient = jax.grad(lambda p: jnp.sum(jnp.real(function(x, p)) * weights))(p)
    return {"value": value, "slope": slope, "gradient": gradient}


@pytest.fixture(scope="module")
def computed():
    """All models of all data, with x known and traced."""

    def both(table, p):
        return {
            "traced": {
                model.__name__: jax.vmap(lambda x, f=model: of_model(f, x, p))(table)
                for model in MODELS
            },
            "known": {f.__name__: of_model(f, DATA["some"], p) for f in MODELS},
        }

    options = compiler_options(is_hasty=True)
    table = jnp.stack([*map(jnp.asarray, DATA.values())])
    return jax.jit(both, compiler_options=options)(table, jnp.asarray(P))


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.filterwarnings("ignore:Degrees of freedom")
@pytest.mark.parametrize("which", [*DATA, "known"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_values_and_slopes(model, which, computed):
    """NumPy's values, and the slopes of central differences, without a NaN of its
    own."""
    x = DATA["some" if which == "known" else which]
    results = computed["known" if which == "known" else "traced"][model.__name__]
    if which != "known":
        results = jax.tree.map(lambda leaf: leaf[[*DATA].index(which)], results)
    assert same_as_numpy(model, x, [P], results["value"])

    def beside(direction):
        after, before = (model(x, P + s * 1e-6 * direction) for s in (1, -1))
        return (after - before) / 2e-6

    slope = beside(np.cos(P))
    if not np.isfinite(slope).all():  # NumPy's mean of nothing
        assert which == "none"
        return
    scale = 1 + np.abs(slope).max()
    np.testing.assert_allclose(results["slope"], slope, rtol=0, atol=1e-7 * scale)
    weights = np.cos(np.arange(slope.size)).reshape(slope.shape)
    gradient = [np.sum(beside(unit) * weights) for unit in np.eye(P.size)]
    np.testing.assert_allclose(results["gradient"], gradient, atol=1e-6 * scale)


def written(x, index, value):
    y = x * 1.0
    y[index] = value
    return y


DIFFERENT = {  # where NumPy combines other elements than ours, or raises
    "other mask": lambda x, p: written(x, x > p[0], x[x >= p[1]]),
    "sum of two": lambda x, p: written(x, x > p[0], x[x > p[0]] + x[x > p[1]]),
    "known mask": lambda x, p: written(x, np.asarray(X > 0.4), x[x > p[1]]),
    "greatest of none": lambda x, p: x + x[x > p[0] + 9].max(),
    "first of none": lambda x, p: x + x[x > p[0] + 9][0],
    "fourth last": lambda x, p: x * np.flatnonzero(x > p[0])[-4],
    "integer outside": lambda x, p: x * x.astype(int)[(90 * p).astype(int)][0],
    "place outside": lambda x, p: x + x[np.flatnonzero(x > p[0]) + 1].sum(),
}
X = np.array([0.3, -1.0, 0.5, -0.2, 1.1, 0.7])


@pytest.mark.parametrize("name", DIFFERENT)
def test_nan_where_numpy_differs(name):
    """Conditions that are not one: NaN everywhere, so that the host takes over."""
    value = speaking_numpy(DIFFERENT[name])(X, jnp.array([0.4, 0.6]))
    assert np.isnan(value).all()
    with pytest.raises((ValueError, IndexError)):
        DIFFERENT[name](X, np.array([0.4, 0.6]))


def test_another_way_to_the_same_mask():
    """A known mask, or one computed in another way, that picks the same."""

    def model(x, p):
        y = written(x, np.asarray(X > 0.4), p[1] * x[x > p[0]])
        y[np.log(x + 3) > np.log(p[0] + 3)] -= np.exp(x[x > p[0]])
        return y

    value = speaking_numpy(model)(X, jnp.array([0.4, 0.6]))
    assert same_as_numpy(model, X, [np.array([0.4, 0.6])], value)


def test_a_condition_written_twice_is_one():
    """No comparison as the program runs."""

    def model(x, p):
        return written(x, p[0] * x > p[1] / 2, np.exp(x[p[0] * x > p[1] / 2]))

    program = jax.make_jaxpr(speaking_numpy(model))(X, X[:2])
    assert str(program).count(" gt ") == 1
    assert "reduce_and" not in str(program)


NOT_COUNTED = (
    lambda x, p: len(x[x > p[0]]),
    lambda x, p: x * sum(x[x > p[0]]),
    lambda x, p: x * x[x > p[0]].shape[0],
    lambda x, p: x if x[x > p[0]].size else -x,
    lambda x, p: x if x[x > p[0]].any() else -x,
    lambda x, p: x if len(np.where(x > p[0])[0]) else -x,
    lambda x, p: np.zeros(x[x > p[0]].shape),
    lambda x, p: np.array(x[x > p[0]]),
    lambda x, p: np.sort(x[x > p[0]]),
    lambda x, p: np.median(x[x > p[0]]) * x,
    lambda x, p: np.concatenate([x[x > p[0]], x[x <= p[0]]]),
    lambda x, p: np.trapezoid(x[x > p[0]], x[x > p[0]]) * x,
    lambda x, p: np.diff(x[x > p[0]]),
    lambda x, p: x[x > p[0]][::2],
    lambda x, p: x[x > p[0]].reshape(-1, 1),
    lambda x, p: x + x[x > p[0]],
    lambda x, p: np.ones(6) * x[x > p[0]],
    lambda x, p: x @ x[x > p[0]],
    lambda x, p: str(x[x > p[0]]) and x,
    lambda x, p: float(x[x > p[0]]) * x,
    lambda x, p: np.add(x, 1, out=x[x > p[0]]),
    lambda x, p: np.outer(x[x > p[0]], p),
    lambda x, p: np.exp(x[x > p[0]], where=x[x > p[0]] > 1),
    lambda x, p: np.sum(x[x > p[0]], where=x[x > p[0]] > 1) * x,
    lambda x, p: np.argmax(x[x > p[0]]) * x,
    lambda x, p: jnp.exp(x[x > p[0]]),
    lambda x, p: x[x > p[0]],
    lambda x, p: [x[x > p[0]], x],
    lambda x, p: {"a": x, "b": np.flatnonzero(x > p[0])},
    lambda x, p: written(x, slice(None), x[x > p[0]]),
    lambda x, p: written(x, x > p[0], x),
    lambda x, p: written(x, x[x > p[0]] > 1, 0.0),
    lambda x, p: written(x, np.flatnonzero(x > p[0]) + 1, 0.0),
    lambda x, p: x[: np.flatnonzero(x > p[0])[0]],
    lambda x, p: np.outer(x, x)[:, x > p[0]],
    lambda x, p: np.outer(x, x)[x > p[0], x > p[0]],
    lambda x, p: np.outer(x, x)[x > p[0]] + x[x > p[0]],
    lambda x, p: np.vectorize(abs)(x[x > p[0]]),
)


@pytest.mark.parametrize("function", NOT_COUNTED)
def test_what_needs_the_count(function):
    """A reason, with what to write, and the user's line."""
    with pytest.raises(NeedsHost) as info:
        jax.eval_shape(speaking_numpy(function), X, X[:2])
    assert info.value.reason.startswith("it ")
    assert __file__ in info.value.place


@pytest.mark.parametrize("index", [np.ones(5, bool), np.ones((6, 1), bool)])
def test_a_mask_of_another_shape(index):
    """It is NumPy's error."""
    for write in (False, True):

        def model(x, p, write=write):
            mask = index & (p[0] > 0)
            return written(x, mask, 0.0) if write else x + x[mask].sum()

        with pytest.raises(IndexError):
            speaking_numpy(model)(X, jnp.ones(2))
