"""Models that only NumPy can compute: answers, errors and manners of the host."""

import math
import pickle
import threading
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.sparse.linalg

import jaxfit
from jaxfit._numpy.differences import Differences

X = np.linspace(0.0, 4.0, 30)
NOISE = 0.01 * np.random.default_rng(5).normal(size=X.size)


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def by_math(x, a, b, c):
    return a * np.array([math.exp(-b * t) for t in x]) + c


def by_math_jac(x, a, b, c):
    e = np.array([math.exp(-b * t) for t in x])
    return np.stack([e, -a * x * e, np.ones(len(x))], axis=1)


Y = decay(X, 2.0, 1.1, 0.3) + NOISE
OUTLIER = np.where(np.arange(X.size) == 7, Y + 1, Y)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"method": "trf", "sigma": 0.01 + 0.01 * X, "absolute_sigma": True},
        {"bounds": ([0, 0, 0.4], [10, 10, 1])},
        {"bounds": ([2.1, 0, -1], [10, 10, 1]), "p0": [2.5, 1, 0]},
        {"method": "trf", "loss": "soft_l1", "f_scale": 0.02},
        {"method": "trf", "x_scale": [1.0, 2.0, 0.5]},
        {"jac": "3-point", "method": "trf"},
        {"jac": by_math_jac},
        {"sigma": 1e-4 * np.eye(X.size) + 1e-5},
        {"ftol": 1e-10},
    ],
    ids=lambda keywords: " ".join(keywords) or "plain",
)
def test_on_the_host_as_compiled(keywords):
    keywords = {"p0": [1.0, 1.0, 0.5]} | keywords
    jac = keywords.pop("jac", None)
    expected, covariance = jaxfit.curve_fit(decay, X, OUTLIER, **keywords)
    x, own = jaxfit.curve_fit(by_math, X, OUTLIER, jac=jac, host=True, **keywords)
    errors = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x - expected) <= 1e-5 * errors)
    assert np.all(np.abs(own - covariance) <= 1e-5 * np.outer(errors, errors))


def test_complex_steps_are_exact():
    x, _ = jaxfit.curve_fit(decay, X, Y, jac="cs", host=True)
    expected, _ = jaxfit.curve_fit(decay, X, Y)
    np.testing.assert_allclose(x, expected, rtol=1e-8)


def test_one_warning_that_says_why_and_where():
    def model(x, a, b):
        return a * x + (b if b > 0 else -b)

    y = 2 * X + 1 + NOISE
    with pytest.warns(jaxfit.HostModelWarning) as caught:
        first, _ = jaxfit.curve_fit(model, X, y)
    (warning,) = caught
    text = str(warning.message)
    assert warning.filename == __file__
    for words in ("model runs on", "test_host_models.py", "b if b > 0", "host=True"):
        assert words in text
    again, _ = jaxfit.curve_fit(model, X, y)  # is said once
    np.testing.assert_array_equal(first, again)


def test_least_squares_and_its_loss_on_the_host():
    def residuals(p, t):
        return by_math(t, *p) - OUTLIER

    def huber(z):
        rho = np.empty((3, z.size))
        inside = z <= 1
        rho[0] = np.where(inside, z, 2 * np.sqrt(np.maximum(z, 1)) - 1)
        rho[1] = np.where(inside, 1, np.maximum(z, 1) ** -0.5)
        rho[2] = np.where(inside, 0, -0.5 * np.maximum(z, 1) ** -1.5)
        return rho

    keywords = {"args": (X,), "f_scale": 0.03, "xtol": 1e-12, "ftol": 1e-14}
    seen = []
    with pytest.warns(jaxfit.HostModelWarning, match="huber"):
        ours = jaxfit.least_squares(
            residuals,
            [1, 1, 0],
            loss=huber,
            host=True,
            callback=seen.append,
            **keywords,
        )
    theirs = scipy.optimize.least_squares(
        residuals, [1, 1, 0], loss="huber", **keywords
    )
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-6)
    assert ours.certified
    assert len(seen) > 2


@pytest.mark.parametrize("kind", ["csr_array", "aslinearoperator"])
def test_jacobians_of_other_kinds(kind):
    def jac(p):
        dense = by_math_jac(X, *p)
        if kind == "csr_array":
            return scipy.sparse.csr_array(dense)
        return scipy.sparse.linalg.aslinearoperator(dense)

    def residuals(p):
        return by_math(X, *p) - Y

    keywords = {"jac": jac, "host": True}
    ours = jaxfit.least_squares(residuals, [1, 1, 0], **keywords)
    theirs = scipy.optimize.least_squares(residuals, [1, 1, 0], jac)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-6)
    assert scipy.sparse.issparse(ours.jac) == scipy.sparse.issparse(theirs.jac)
    np.testing.assert_allclose(ours.jac @ ours.x, theirs.jac @ ours.x, rtol=1e-6)
    for other in ({"method": "lm"}, {"tr_solver": "exact"}):
        with pytest.raises(ValueError, match="Return an array"):
            jaxfit.least_squares(residuals, [1, 1, 0], **keywords, **other)


def test_a_view_that_is_written_to():
    def model(x, a, b):
        y = a * x
        tail = y[20:]
        tail += b  # NumPy writes through
        return y

    x, _ = jaxfit.curve_fit(model, X, model(X, 2.0, 1.0))
    np.testing.assert_allclose(x, [2, 1], rtol=1e-9)


def test_a_model_that_counts_its_calls_compiles_once(caplog):
    import jax

    calls = []

    def model(x, a, b):
        calls.append(1)
        return a * np.exp(-b * x)

    jaxfit.curve_fit(model, X, Y)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        jaxfit.curve_fit(model, X, 2 * Y)
    assert not [r for r in caplog.records if "Compiling" in r.message]


def test_an_integrator_is_as_exact_as_its_noise():
    def model(t, a, k):
        def slope(y, t):
            return -k * y

        return scipy.integrate.odeint(slope, a, t)[:, 0]

    y = model(X, 2.0, 0.7) + NOISE
    theirs, covariance = scipy.optimize.curve_fit(model, X, y, (1, 1))
    ours, _ = jaxfit.curve_fit(model, X, y, (1, 1), host=True)
    assert np.all(np.abs(ours - theirs) < 1e-2 * np.sqrt(np.diag(covariance)))


def test_differences_stay_inside_of_bounds():
    seen = []

    def model(x, a, b):
        seen.append((a, b))
        return a * np.array([math.exp(-b * t) for t in x])

    y = 3 * np.exp(-0.5 * X)
    bounds = ([0, 0.5], [2, 0.5 + 1e-9])
    for jac in ("2-point", "3-point"):
        jaxfit.curve_fit(
            model, X, y, (1, 0.5), bounds=bounds, jac=jac, host=True, method="trf"
        )
    lower, upper = map(np.array, bounds)
    assert len(seen) > 10
    assert np.all((np.array(seen) >= lower) & (np.array(seen) <= upper))


@pytest.mark.parametrize(("rule", "error"), [("2-point", 1e-7), ("3-point", 1e-9)])
def test_differences_of_small_and_large_parameters(rule, error):
    p = np.array([3e-12, -4e9, 0.0])
    differences = Differences(rule=rule, typical=np.array([1e-12, 1e9, 1.0]))

    def values(p):
        return np.array([(p[0] * 1e12) ** 2, (p[1] / 1e9) ** 3, np.sin(p[2])])

    _, slopes = differences.linearized(values, p)
    exact = np.diag([6e12, 48e-9, 1.0])
    np.testing.assert_allclose(np.diag(slopes), np.diag(exact), rtol=error)


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [OwnError("no licence"), KeyboardInterrupt()])
def test_the_users_error_comes_as_it_is(error):
    calls = []

    def model(x, a, b):
        calls.append(threading.get_ident())
        if len(calls) > 5:
            raise error
        return a * x + float(b)

    y = 2 * X + 1 + NOISE
    doors = (
        lambda: jaxfit.curve_fit(model, X, y, host=True),
        lambda: jaxfit.fit(model, X, y, host=True),
        lambda: jaxfit.fit_batch(model, X, np.stack([y, y]), host=True),
    )
    for door in doors:
        calls.clear()
        with pytest.raises(type(error)) as caught:
            door()
        assert caught.value is error
        assert set(calls) == {threading.get_ident()}


def test_fit_and_its_batch_on_the_host():
    expected = jaxfit.fit(decay, X, Y)
    fit = jaxfit.fit(by_math, X, Y, host=True)
    for name in "abc":
        ours, theirs = fit[name], expected[name]
        assert abs(ours.value - theirs.value) < 1e-5 * theirs.stderr
        assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-5)
    finer = np.linspace(0, 4, 77)
    np.testing.assert_allclose(fit.predict(finer), expected.predict(finer), rtol=1e-6)
    batch = jaxfit.fit_batch(by_math, X, np.stack([Y, Y + 0.1]), host=True)
    np.testing.assert_allclose(
        batch["c"], fit["c"].value + np.array([0, 0.1]), atol=1e-7
    )
    again = pickle.loads(pickle.dumps(fit))
    np.testing.assert_array_equal(again.predict(finer), fit.predict(finer))


def test_bounds_ties_and_priors_on_the_host():
    terms = {
        "bounds": {"a": (0, 1.9)},
        "tie": {"c": lambda p: 0.15 * p["a"]},
        "prior": {"b": (1.0, 0.05)},
    }
    expected = jaxfit.fit(decay, X, Y, sigma=0.01, **terms)
    fit = jaxfit.fit(by_math, X, Y, sigma=0.01, host=True, **terms)
    for name in "abc":
        assert fit[name].value == pytest.approx(expected[name].value, rel=1e-7)


@pytest.mark.parametrize("model", [by_math, lambda x, a, b, c: a * np.exp(-b * x) + c])
def test_several_data_sets(model):
    sets = [X, X[5:17]], [Y, Y[5:17] + 0.1]
    fit = jaxfit.fit(model, *sets, local="c", host=model is by_math)
    expected = jaxfit.fit(decay, *sets, local="c")
    for name in ("a", "b", "c_1", "c_2"):
        assert fit[name].value == pytest.approx(expected[name].value, rel=1e-6)


def test_what_else_a_fit_can_be_asked_for():
    """Callbacks, complex data, many starts and bands of a model on the host."""
    seen = []
    fit = jaxfit.fit(by_math, X, Y, host=True, callback=seen.append)
    assert len(seen) > 2
    np.testing.assert_allclose(fit.confidence_band(X[:3]).lower < fit.predict(X[:3]), 1)

    def waves(x, a, k):
        return np.array([a * complex(math.cos(k * t), math.sin(k * t)) for t in x])

    z = 2 * np.exp(1.5j * X) + NOISE * (1 + 1j)
    fit = jaxfit.fit(waves, X, z, p0={"a": 1.8, "k": 1.4}, host=True)
    assert fit["k"].value == pytest.approx(1.5, abs=0.01)
    fit = jaxfit.fit(by_math, X, Y, host=True, starts=3)
    assert fit.minima is not None


# Compiled, and held against NumPy


def test_what_differs_from_numpy_goes_to_the_host():
    state = {"calls": 0}

    def moody(x, a, b):
        state["calls"] += 1
        return a * x + b + (0.0 if state["calls"] < 4 else 1.0)

    with pytest.warns(jaxfit.HostModelWarning, match="other values than NumPy"):
        jaxfit.curve_fit(moody, X, 2 * X + 1 + NOISE)


def test_a_slope_that_jax_does_not_know_goes_to_the_host():
    def root(x, a, b):
        return b * np.sqrt(a * x)  # at x = 0 the chain rule gives zero times infinity

    y = 2 * np.sqrt(1.5 * X) + NOISE
    with pytest.warns(jaxfit.HostModelWarning, match="derivatives are not finite"):
        x, _ = jaxfit.curve_fit(root, X, y, bounds=([1.5, 0], [1.5, 9]), p0=(1.5, 1))
    expected = np.sum(y * np.sqrt(1.5 * X)) / np.sum(1.5 * X)
    assert x[1] == pytest.approx(expected, rel=1e-9)


def test_other_data_in_a_closure_compile_nothing(caplog):
    import jax

    def solved(t, y):
        return jaxfit.least_squares(lambda p: p[0] * np.exp(-p[1] * t) - y, (1.0, 1.0))

    first = solved(X, Y)
    with jax.log_compiles(), caplog.at_level("WARNING"), warnings.catch_warnings():
        second = solved(X.copy(), 2 * Y)
    assert not [r for r in caplog.records if "Compiling" in r.message]
    assert second.x[0] == pytest.approx(2 * first.x[0], rel=1e-6)


def test_x_stays_known_where_it_has_to_be():
    knots = np.linspace(0, 5, 6)

    def steps(x, a, b):
        return a * knots[np.searchsorted(knots, x)] + b * x

    x, _ = jaxfit.curve_fit(steps, X, steps(X, 1.5, -0.5) + NOISE)
    basis = np.stack([steps(X, 1, 0), steps(X, 0, 1)], axis=1)
    expected, *_ = np.linalg.lstsq(basis, basis @ [1.5, -0.5] + NOISE)
    np.testing.assert_allclose(x, expected, rtol=1e-9)


def test_the_same_code_around_another_function():
    import jax.numpy as jnp

    def around(inner):
        return lambda x, a, b: inner(x, a, b)

    y = decay(X, 2.0, 1.1, 0) + NOISE
    inner = (
        lambda x, a, b: a * np.exp(-b * x),
        lambda x, a, b: a * jnp.exp(-b * x),
        lambda x, a, b: a * np.array([math.exp(-b * t) for t in x]),
        lambda x, a, b: a * np.exp(-b * x),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxfit.HostModelWarning)
        found = [jaxfit.curve_fit(around(f), X, y)[0] for f in inner]
    for x in found[1:]:
        np.testing.assert_allclose(x, found[0], rtol=1e-6)


def in_jax(x, a, b):
    return a * jnp.exp(-b * x)


def through_a_view(x, a, b):
    y = a * x
    head = y[:9]
    head += b
    return y


def with_an_if(x, a, b):
    return a * x + (b if b > 0 else 2 * b) * x**2


def with_offset(function):
    return lambda x, a, b, c: function(x, a, b) + c


class Offset:
    def __init__(self, function):
        self.function = function

    def __call__(self, x, a, b, c):
        return self.function(x, a, b) + c


@pytest.mark.parametrize("wrapper", [with_offset, Offset])
def test_functions_of_the_same_code_that_hold_others(wrapper):
    """What is written in JAX is not compared: each function is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxfit.HostModelWarning)
        for _ in range(2):
            x, _ = jaxfit.curve_fit(wrapper(in_jax), X, Y)
            np.testing.assert_allclose(x, jaxfit.curve_fit(decay, X, Y)[0], rtol=1e-6)
            for function in (through_a_view, with_an_if):
                x, _ = jaxfit.curve_fit(wrapper(function), X, Y)
                theirs, _ = scipy.optimize.curve_fit(wrapper(function), X, Y)
                np.testing.assert_allclose(x, theirs, rtol=1e-5, err_msg=function)


def test_told_once_whatever_else_has_the_same_code():
    def alike(x, a, b):
        return with_an_if(x, a, b)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for function in (through_a_view, alike) * 2:
            jaxfit.curve_fit(with_offset(function), X, Y)
    assert [type(one.message) for one in caught] == [jaxfit.HostModelWarning]


POINTS = np.random.default_rng(7).normal(size=(30, 3))
GRID = np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 2, 5)))
SHAPES = {  # of x, and how its coordinates lie in it
    "(k, m)": (POINTS.T, lambda x: x, lambda x: x[:, :7]),
    "(m, k)": (POINTS, lambda x: x.T, lambda x: x[:7]),
    "grid": (GRID, lambda x: [axis.ravel() for axis in x], lambda x: x[:, :3, :2]),
    "grids": (tuple(GRID), lambda x: [axis.ravel() for axis in x], lambda x: x),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_values_elsewhere_of_whatever_shape(kind):
    x, coordinates, elsewhere = SHAPES[kind]

    def model(x, a, b):
        first, second, *_ = coordinates(x)
        return a * first + (b if b > 0 else 0.0) * second**2

    fitted = jaxfit.fit(model, x, model(x, 2.0, 3.0), host=True)
    others = elsewhere(x)
    np.testing.assert_allclose(fitted.predict(others), model(others, 2.0, 3.0))


def in_single(x, a, b, c):
    return by_math(x, a, b, c).astype(np.float32)


def in_single_of(p):
    return (by_math(X, *p) - Y).astype(np.float32)


SINGLE = {  # what returns float32 is differenced with its steps
    "curve_fit": lambda: jaxfit.curve_fit(in_single, X, Y, host=True)[0],
    "least_squares": lambda: jaxfit.least_squares(in_single_of, [1, 1, 1], host=True).x,
    "fit": lambda: list(jaxfit.fit(in_single, X, Y, host=True).values.values()),
    "fit_batch": lambda: [
        float(value[0])
        for value in jaxfit.fit_batch(in_single, X, Y[None], host=True).values.values()
    ],
}


@pytest.mark.parametrize("door", SINGLE)
def test_single_precision(door):
    expected, covariance = jaxfit.curve_fit(decay, X, Y)
    errors = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(SINGLE[door]() - expected) <= 0.01 * errors)


def in_numpy(x, a, b, c):
    return a * np.exp(-b * x) + c


@pytest.mark.filterwarnings("ignore::jaxfit.HostModelWarning")
@pytest.mark.parametrize("model", [by_math, in_numpy])
def test_saved_and_loaded(model, tmp_path):
    fitted = jaxfit.fit(model, X, Y)
    fitted.save(tmp_path / "fit.npz")
    again = jaxfit.Fit.load(tmp_path / "fit.npz", model)
    np.testing.assert_array_equal(again.predict(X[:7]), fitted.predict(X[:7]))


def sorts(p):
    p.sort()
    return np.array([p[0] - 1, p[1] - 3, p[0] * p[1] - 3])


def sorts_on_the_host(p):
    p.sort()
    return np.array([p[0] - 1, float(p[1]) - 3, p[0] * p[1] - 3])


BUFFER = np.empty(3)


def into_a_buffer(p):
    BUFFER[:] = p[0] - 1, p[1] - 3, p[0] * p[1] - 3
    return BUFFER


@pytest.mark.filterwarnings("ignore::jaxfit.HostModelWarning")
@pytest.mark.parametrize("function", [sorts, sorts_on_the_host, into_a_buffer])
@pytest.mark.parametrize("start", [(5.0, 2.0), (1.0, 3.0)])
def test_what_a_function_writes_to_is_its_own(function, start):
    """The parameters that it gets, and what it returned before."""
    start = np.array(start)
    found = jaxfit.least_squares(function, start)
    np.testing.assert_allclose(np.sort(found.x), [1, 3], rtol=1e-6)
    np.testing.assert_allclose(found.fun, 0, atol=1e-6)
    assert tuple(start) in ((5, 2), (1, 3))


def test_what_a_model_masks_is_no_value():
    def model(x, a, b, c):
        return np.ma.masked_where(x > 3, by_math(x, a, b, c))

    with pytest.raises(ValueError, match="residuals are not finite"):
        jaxfit.curve_fit(model, X, Y, host=True)
