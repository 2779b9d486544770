"""Arrays that a NumPy model creates itself, and writes what it computes into.

Values and slopes of each model are held against NumPy's, and what is not theirs to
change (globals, caches, objects) is looked at afterwards.
"""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.interpolate
import scipy.special
from numpy import array, exp, zeros

import jaxfit
from jaxfit._numpy.compile import speaking_numpy
from jaxfit._numpy.needs import NeedsHost

X = np.array([-1.7, -0.6, 0.37, 0.8, 1.4, 2.3])
P = np.array([1.3, 0.7, -0.4])
TABLE = np.array([1.0, 3.0, 2.0])


def by_mask(x, p):
    y = np.zeros(len(x))
    y[X > 0] = (p[0] * x)[X > 0]
    y[~(X > 0)] = p[1]
    return y


def by_traced_mask(x, p):
    y = np.zeros(x.shape)
    on = x > p[1]
    y[on] = p[0] * np.log(x[on])
    return y


def filled(x, p):
    y = np.empty(x.shape)
    y[:] = p[0] * x + p[1]
    return y


def looped(x, p):
    y = np.zeros(len(x))
    for k in range(len(y)):
        y[k] = p[0] * np.exp(-p[1] * x[k])
    return y


def by_euler(x, p):
    y = np.ones(6) * 0.5
    for k in range(1, 6):
        y[k] = y[k - 1] * (1 - p[1] * (x[k] - x[k - 1]))
    return p[0] * y


def added(x, p):
    y = zeros(6)
    y += p[0] * x
    y -= p[1]
    return y


def ufunc_at(x, p):
    y = np.zeros(3)
    np.add.at(y, [0, 0, 2], p * x[:3])
    return y


def through_views(x, p):
    grid = np.zeros((2, 3))
    row = grid[1]
    row[:] = p * x[:3]
    grid[0, ::2] = p[0]
    return grid.T


def cut(x, p):
    whole = np.zeros(6, dtype=int)
    whole[:] = 3 * p[0] * x
    return whole + p[0] * x


def matrix(x, p):
    m = np.array([[p[0], 1], [-p[1], 2]], dtype=float)
    return np.linalg.solve(m, np.array([x[:2], x[2:4]]))


def complex_matrix(x, p):
    m = np.eye(3, dtype=complex)
    m[0, 1] = 1j * p[0]
    return np.abs(m @ (p * x[:3]))


def long_one(x, p):
    return np.asarray(np.tile(x, 100) * p[0]) + 1


def as_arrays(x, p):
    x, p = np.asarray(x, dtype=float), np.ascontiguousarray(p)
    x = np.array(x)
    x[0] = p[1]
    return x * p[0]


def lent(x, p):
    y = p[0] * x
    v = np.asarray(y)
    y[0] = 1.0
    return y + v


def borrowed(x, p):
    y = p[0] * x
    v = np.asarray(y)
    v[0] = 1.0
    return y


def of_constants(x, p):
    y = TABLE.copy()
    y *= p
    y[1] += TABLE[0] ** 2
    return np.full(3, p[0]) * y + np.full_like(TABLE, p[1])


def of_counters(x, p):
    y = np.zeros((2, *x.shape))
    for k, scale in enumerate(np.arange(1, 3)):
        y[k] = scale * p[0] * x
    return y


def of_known_numbers(x, p):
    steps, names = np.linspace(0, 1, 5), ["a", "b", "c"]
    y = np.zeros(len(steps))
    y[:] = p[0]
    if steps[1] > 0.2 and (steps >= 0).all():
        y[2] = p[1] * math.exp(steps[1]) * float(steps[3])
    kind = names[np.array([2, 1])[0]]
    text = f"{steps[1]:.2f}"
    y[1] = p[2] * {"c": 2.0, "b": 5.0}[kind] * float(text) * {steps[1]: 3}[steps[1]]
    return y + steps[np.searchsorted(steps, 0.6)]


def with_scipy(x, p):
    spline = scipy.interpolate.CubicSpline(np.arange(4), np.array([0.0, 1, 4, 2]))
    y = np.zeros(4)
    y[:] = p[0] * spline(np.linspace(0, 3, 4)) + scipy.special.erf(np.ones(4))
    return y


def with_imports(x, p):
    import numpy as other
    from numpy import empty

    y = empty(6)
    y[...] = other.array([p[0], p[1]], float)[1] * x
    return y


def from_iterable(x, p):
    return np.fromiter((p[0] * t for t in x), float, count=6) + array([p[0]] * 6, float)


def kinds(x, p):
    y = np.zeros(6)
    is_array = isinstance(y, np.ndarray) and y.dtype == float and not np.isscalar(y)
    y[:] = p[0] * x if is_array else 0
    return y if isinstance(y[0], np.floating) else -y


def helper(t, a):
    y = zeros(len(t))
    y[1:] = a * exp(-(t[1:] ** 2))
    return y


def factorial_like(t, n):
    if not n:
        return np.array(t, dtype=float)
    y = np.empty(len(t))
    y[:] = n * factorial_like(t, n - 1) * t
    return y


def by_helpers(x, p):
    def inner(scale):
        y = np.zeros(6)
        y[:] = scale * factorial_like(x, 2)
        return y

    return helper(x, p[0]) + inner(p[1]) + FUNCTIONS["one"](x, p[2]) + own.helper(x, 1)


FUNCTIONS = {"one": helper}
own = types.ModuleType("own")
exec(
    "import numpy as np\n"
    "def helper(x, a):\n"
    "    y = np.zeros(6)\n"
    "    y[:] = a * x\n"
    "    return y\n",
    vars(own),
)


def closing(table, function):
    def model(x, p, shift=TABLE):
        y = table.copy()
        y[:3] = function(x[:3], p[0]) * shift
        return y

    return model


class Model:
    def __init__(self, table):
        self.table, self.calls, self.cache = table, 0, {}

    @staticmethod
    def scale(a):
        y = np.zeros(6)
        y[:] = a
        return y

    @property
    def grid(self):
        if "grid" not in self.cache:
            self.cache["grid"] = np.arange(6) / 2
        return self.cache["grid"]

    def signal(self, x, p):
        self.calls += 1
        y = self.table.copy()
        y += p[0] * self.grid
        self.last = y
        return y * self.scale(p[1])

    def __call__(self, x, p):
        return self.signal(x, p) * x


class Derived(Model):
    def signal(self, x, p):
        y = np.zeros(6)
        y[:] = p[0] * self.table
        return y if isinstance(self, Model) else -y


MODELS = {
    function.__name__: function
    for function in (
        *(by_mask, by_traced_mask, filled, looped, by_euler, added, ufunc_at),
        *(through_views, cut, matrix, complex_matrix, long_one, as_arrays, lent),
        *(borrowed, of_constants, of_counters, of_known_numbers, with_scipy),
        *(with_imports, from_iterable, kinds, by_helpers),
    )
} | {
    "closure": closing(np.arange(6.0), helper),
    "method": Model(2 * X).signal,
    "object": Model(2 * X),
    "derived object": Derived(2 * X),
    "partial": functools.partial(lambda s, x, p: helper(x, s * p[1]), 2.0),
    "lambda": lambda x, p: np.array([p[0], p[1]], dtype=float).sum() * x,
}


@pytest.mark.parametrize("name", MODELS)
def test_value_and_slope(name):
    function, direction = MODELS[name], (0.3 * X[::-1], 0.7 * P[::-1])
    step = 1e-6
    ends = [
        function(*(v + s * d for v, d in zip((X, P), direction, strict=True)))
        for s in (step, -step)
    ]
    truth, slope = function(X.copy(), P), (ends[0] - ends[1]) / (2 * step)
    compiled = jax.jit(lambda *args: jax.jvp(speaking_numpy(function), *args))
    value, tangent = compiled(tuple(map(jnp.asarray, (X, P))), direction)
    assert value.dtype == truth.dtype
    np.testing.assert_allclose(value, truth, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(tangent, slope, rtol=1e-7, atol=1e-8)


def by_global(x, p):
    global WRITTEN
    WRITTEN = np.zeros(6)
    WRITTEN[:] = p[0] * x
    return WRITTEN


def into_a_constant(x, p):
    TABLE[0] = p[0]
    return TABLE[0] * x


def in_long_loops(x, p):
    y = np.zeros(300)
    for k in range(300):
        y[k] = p[0] * k
    return y


def of_text(x, p):
    return np.array([str(p[0])]).astype(float) * x


def with_real_of_complex(x, p):
    return np.array(1j * p[0] * x, dtype=float)


def by_quad(x, p):
    y = np.zeros(6)
    y[:] = scipy.integrate.quad(lambda t: p[0] * t, 0, 1)[0]
    return y


REFUSED = {
    by_global: "array of NumPy's own",
    into_a_constant: "read-only",
    in_long_loops: "whole arrays",
    of_text: "text",
    with_real_of_complex: "dtype float64 of complex128",
    by_quad: "value of a parameter",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_needs_host(function):
    table = TABLE.copy()
    with pytest.raises(NeedsHost, match=REFUSED[function]):
        jax.eval_shape(speaking_numpy(function), X, P)
    np.testing.assert_array_equal(TABLE, table)


def test_the_users_own_is_left_alone():
    """No trace leaves its arrays in caches, objects or globals."""
    model, cache = Model(2 * X), {}

    def cached(x, p):
        if "grid" not in cache:
            cache["grid"] = np.arange(6.0)
        y = np.zeros(6)
        y[:] = p[0] * cache["grid"]
        return y

    for function in (model, cached):
        for _ in range(2):
            jax.eval_shape(speaking_numpy(function), X, P)
    assert type(np.zeros(1)) is np.ndarray
    for kept in (cache, model.cache, vars(model)):
        assert all(type(v) in (np.ndarray, dict, int) for v in kept.values())
    assert not hasattr(model, "last") or type(model.last) is np.ndarray
    assert cached(X, P).shape == model(X, P).shape == X.shape


def test_fits_without_a_warning():
    """From every door, also of a model that holds arrays, which are inputs then."""
    x, weights = np.linspace(0, 4, 30), np.linspace(1, 2, 30)

    def model(x, a, b, t):
        y = np.zeros(len(x))
        on = x > 1
        y[on] = a * np.exp(-b * x[on])
        w = weights.copy()
        w *= t
        return y + w + np.array([t, 0], dtype=float)[0] * TABLE[1]

    def residuals(p, values):
        r = np.empty(30)
        r[:] = model(x, *p) - values
        return r

    true = np.array([2.0, 0.7, 0.2])
    y = model(x, *true)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    for scale in (1, 2):
        found, _ = jaxfit.curve_fit(model, x, scale * y, (1, 1, 0))
        near(found, true * [scale, 1, scale])
        result = jaxfit.least_squares(residuals, [1, 1, 0], args=(scale * y,))
        near(result.x, true * [scale, 1, scale])
    start = {"a": 1.0, "b": 1.0, "t": 0.0}
    near([*jaxfit.fit(model, x, y, p0=start).values.values()], true)
    batch = jaxfit.fit_batch(model, x, np.stack([y, 2 * y]), p0=start)
    near(batch["a"], [2, 4])
