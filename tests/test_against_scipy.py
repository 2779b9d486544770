"""The same call to SciPy and to jaxfit: the same answer, statistics, status and error.

SciPy gets an exact Jacobian and, for `curve_fit`, tolerances at the limit of double
precision: its defaults stop some NIST problems at two digits.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import nist
import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import Bounds, OptimizeWarning

import jaxfit

TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "x_scale": "jac"}


def numpy_model(model):
    """A model and its Jacobian as SciPy wants them."""

    @jax.jit
    def both(x, p):
        return model(x, *p), jax.jacfwd(lambda p: model(x, *p))(p)

    def f(x, *p):
        return np.asarray(both(x, np.array(p))[0])

    def jac(x, *p):
        return np.asarray(both(x, np.array(p))[1])

    return f, jac


class Case(NamedTuple):
    """One call of `curve_fit`."""

    name: str
    model: Callable
    x: Any
    y: Any
    p0: Any = None
    kwargs: dict = {}


def line(x, a, b):
    return a * x + b


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def power(x, a, b):
    return a * x**b


def plane(x, a, b, c):
    return a * x[0] + b * x[1] + c


RNG = np.random.default_rng(11)
T = np.linspace(0, 4, 30)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.05 * RNG.normal(size=30)
OUTLIERS = Y + np.where(np.arange(30) % 7 == 3, 1.0, 0.0)
ERRORS = 0.03 + 0.02 * T
CORRELATED = 0.003 * np.exp(-np.abs(T[:, None] - T)) + np.diag(ERRORS**2)
ROTATION = RNG.normal(size=(30, 30))
START = [1.0, 1.0, 0.0]
TWO = RNG.normal(size=(2, 25))
TWO_Y = 2 * TWO[0] - TWO[1] + 0.5 + 0.1 * RNG.normal(size=25)


def nist_case(name, start=1):
    problem = nist.load(name)

    def model(x, *p):
        return problem.model(jnp.stack(p), x)

    p0 = problem.starts[start]
    return Case(f"NIST {name} {start + 1}", model, problem.x, problem.y, p0)


NIST = [
    *("BoxBOD", "Chwirut1", "Chwirut2", "DanWood", "Eckerle4", "Gauss1", "Gauss2"),
    *("Gauss3", "Hahn1", "Kirby2", "Lanczos3", "MGH09", "MGH10", "MGH17", "Misra1a"),
    *("Misra1b", "Misra1c", "Misra1d", "Nelson", "Rat42", "Rat43", "Roszman1"),
    "Thurber",
]

CASES = [
    *map(nist_case, NIST),
    Case("line", line, T, Y),
    Case("line, lists", line, [1, 2, 3, 4], [3, 5, 7.5, 9]),
    Case("plane, (2, m)", plane, TWO, TWO_Y),
    Case("plane, a list of lists", plane, TWO.tolist(), TWO_Y.tolist()),
    Case("no xdata", lambda _, a: a * jnp.arange(10.0), None, 2 * np.arange(10)),
    Case("scalar p0", power, T[1:, None].ravel(), T[1:] ** 1.5 + 1e-3 * Y[1:], None),
    Case("integer data", line, np.arange(5), np.array([1, 3, 4, 8, 9])),
    Case("float32 data", line, T.astype(np.float32), Y.astype(np.float32)),
    Case("a scalar model", lambda x, a: a, T, Y, [1.0]),
    Case("a scalar ydata", lambda x, a, b: line(x, a, b) - Y, T, 0.0),
    Case("one point", lambda x, a: a * x, [2.0], [3.0]),
    Case("one point, absolute", lambda x, a: a * x, [2.0], [3.0], None,
         {"sigma": [0.1], "absolute_sigma": True}),
    Case("m = n", line, [1.0, 2.0], [3.0, 5.0], [1.0, 1.0]),
    Case("m = n, absolute", line, [1.0, 2.0], [3.0, 5.0], [1.0, 1.0],
         {"sigma": [1.0, 2.0], "absolute_sigma": True}),
    Case("m < n, trf", decay, [0.0, 1.0], [3.0, 1.0], START, {"method": "trf"}),
    Case("m < n", decay, [0.0, 1.0], [3.0, 1.0], START),
    Case("rank-deficient", lambda x, a, b: (a + b) * x, T, Y),
    Case("unused parameter", lambda x, a, b: a * x, T, Y, [2.0, 0.0]),
    Case("no residual", decay, T, 2.5 * np.exp(-1.3 * T) + 0.5, START),
    *(
        Case(f"{name}, absolute={absolute}", decay, T, Y, START,
             {"sigma": sigma, "absolute_sigma": absolute})
        for name, sigma in (
            ("scalar sigma", 0.1), ("1-D sigma", ERRORS),
            ("sigma list", ERRORS.tolist()),
            ("2-D sigma", CORRELATED), ("diagonal sigma", np.diag(ERRORS**2)),
            ("rough 2-D sigma", ROTATION @ ROTATION.T + 0.1 * np.eye(30)),
        )
        for absolute in (False, True)
    ),
    Case("bounds inactive", decay, T, Y, START, {"bounds": (-10, 10)}),
    Case("upper bound active", decay, T, Y, START, {"bounds": (0, [3.0, 1.0, 5.0])}),
    Case("lower bound active", decay, T, Y, None,
         {"bounds": ([0, 1.5, 0], np.inf)}),
    Case("two bounds active", decay, T, Y, None,
         {"bounds": ([0, 0, 0.55], [2.2, 5, 1])}),
    Case("a Bounds instance", decay, T, Y, START,
         {"bounds": Bounds([0, 0, 0], [3.0, 1.0, 5.0])}),
    Case("start on a bound", decay, T, Y, [0.0, 1.0, 0.0], {"bounds": (0, 10)}),
    Case("dogbox", decay, T, Y, START, {"bounds": (0, 3), "method": "dogbox"}),
    Case("bounds and sigma", decay, T, Y, START,
         {"bounds": (0, [3.0, 1.0, 5.0]), "sigma": ERRORS, "absolute_sigma": True}),
    *(
        Case(f"{loss}{', bounds' if bounds else ''}", decay, T, OUTLIERS, START,
             {"loss": loss, "f_scale": 0.1, "method": "trf",
              **({"bounds": bounds} if bounds else {})})
        for loss in ("soft_l1", "huber", "cauchy", "arctan")
        for bounds in (None, ([0, 0, 0.6], [3, 3, 3]))
    ),
]  # fmt: skip


def outcome(curve_fit, *args, **kwargs):
    """The five-tuple, whether the covariance was known, or the error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = curve_fit(*args, full_output=True, **kwargs)
        except (ValueError, TypeError, RuntimeError) as error:
            return error, None
    unknown = any(w.category is OptimizeWarning for w in caught)
    return result, unknown


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_curve_fit(case):
    f, jac = numpy_model(case.model)
    kwargs = dict(case.kwargs)
    method = kwargs.pop("method", None)
    if case.name in ("a scalar model", "a scalar ydata") or case.name[:6] == "scalar":
        jac = None  # with which SciPy cannot broadcast
    tight = {"method": method or "trf", "max_nfev": 5000, "jac": jac, **TIGHT}
    needs_lm = case.name == "m < n"  # the check of the default method
    x = None if case.x is None else np.asarray(case.x, float)
    expected, _ = outcome(
        scipy.optimize.curve_fit,
        *(f, x, case.y, case.p0 if case.p0 is not None else first_guess(case)),
        **kwargs,
        **({} if needs_lm else tight),
    )
    found, unknown = outcome(
        jaxfit.curve_fit, case.model, case.x, case.y, case.p0, method=method, **kwargs
    )
    if isinstance(expected, Exception):
        assert type(found) is type(expected), found
        return
    assert not isinstance(found, Exception), found
    compare_fits(case, found, expected, unknown)


def first_guess(case):
    """SciPy cannot count the parameters of the wrapped model."""
    n = case.model.__code__.co_argcount - 1
    bounds = case.kwargs.get("bounds", (-np.inf, np.inf))
    lower, upper = (np.broadcast_to(np.asarray(b, float), n) for b in bounds)
    return scipy.optimize._minpack_py._initialize_feasible(lower, upper)


def compare_fits(case, found, expected, unknown):
    (x, covariance, info, message, status), (x0, covariance0, info0, *_) = (
        found,
        expected,
    )
    assert status in (1, 2, 3, 4)
    assert isinstance(message, str)
    assert x.dtype == covariance.dtype == np.float64
    cost, cost0 = np.sum(info["fvec"] ** 2), np.sum(info0["fvec"] ** 2)
    assert cost <= cost0 * (1 + 1e-9) + 1e-20
    assert info["fvec"].shape == info0["fvec"].shape
    if unknown:
        assert np.isinf(covariance).all()
        singular = np.linalg.cond(covariance0) > 1e14
        assert np.isinf(covariance0).all() or singular
        return
    relative = not case.kwargs.get("absolute_sigma", False)
    if relative and cost0 < 1e-20 * np.sum(np.square(case.y)):  # it is rounding
        np.testing.assert_allclose(x, x0, rtol=1e-9)
        assert (np.abs(covariance) < 1e-20).all()
        return
    scale = np.sqrt(np.diag(covariance0))
    np.testing.assert_allclose(x, x0, rtol=1e-6, atol=1e-4 * scale.min())
    np.testing.assert_allclose(
        covariance, covariance0, rtol=1e-4, atol=1e-6 * scale.max() ** 2
    )


class Minimum(NamedTuple):
    """One call of `least_squares`."""

    name: str
    fun: Callable  # of x, with jax.numpy
    x0: Any
    kwargs: dict = {}
    same_path: bool = True


def trivial(x, a=0.0):
    return (x - a) ** 2 + 5.0


def rosenbrock(x):
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def one_residual(x):
    return 10 * (x[1] - x[0] ** 2)


def boundary_value(x):
    n = int(np.sqrt(x.shape[0]))
    u = jnp.pad(x.reshape(n, n), 1)
    neighbours = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]
    return (neighbours - 4 * u[1:-1, 1:-1] + u[1:-1, 1:-1] ** 3).ravel()


def tridiagonal(x):
    """Broyden's function."""
    value = (3 - x) * x + 1
    return value.at[1:].add(-x[:-1]).at[:-1].add(-2 * x[1:])


def fit(x):
    return decay(T, *x) - OUTLIERS


def count_like(x):
    """The shape of SciPy's regression gh-19103: a start on its bounds."""
    a, b, c = x
    t = jnp.arange(60.0) * 0.2
    return a * jnp.exp(b * (t - c)) - jnp.where(t > 6, 2 ** (t - 6.0), 0.0)


def cubic(z):
    """SciPy's example of a loss of one's own."""
    t = 1 + z
    return jnp.stack([3 * (t ** (1 / 3) - 1), t ** (-2 / 3), -2 / 3 * t ** (-5 / 3)])


INF = np.inf
LOSSES = ("linear", "soft_l1", "huber", "cauchy", "arctan", cubic)
MINIMA = [
    Minimum("a number", trivial, 2.0),
    Minimum("arguments", trivial, 2.0, {"args": (3.0,)}),
    Minimum("keyword arguments", trivial, 2.0, {"kwargs": {"a": 3.0}}),
    Minimum("one evaluation", trivial, 2.0, {"max_nfev": 1}),
    Minimum("two evaluations", rosenbrock, [-2.0, 1.0], {"max_nfev": 2}),
    Minimum("nine evaluations", rosenbrock, [-2.0, 1.0], {"max_nfev": 9}),
    Minimum("at the solution", rosenbrock, [1.0, 1.0]),
    *(
        Minimum(f"Rosenbrock {kwargs}", rosenbrock, x0, kwargs)
        for x0, kwargs in (
            ([-2, 1], {}),
            ([-2.0, 1.0], {"x_scale": [1.0, 0.2]}),
            ([-2.0, 1.0], {"x_scale": "jac"}),
            ([-2.0, 1.0], {"ftol": None, "xtol": None}),
            ([-2.0, 1.0], {"ftol": None, "gtol": None}),
            ([-2.0, 1.0], {"xtol": None, "gtol": None}),
            ([-2.0, 1.0], {"gtol": 1e-3, "ftol": 1e-3}),
            ([-2.0, 1.0], {"xtol": 1e-2}),
            ([-2.0, 1.0], {"bounds": ([-INF, -1.5], INF)}),
            ([2.0, 2.0], {"bounds": ([-INF, 1.5], INF)}),
            ([-2.0, 2.0], {"bounds": ([-INF, 1.5], INF)}),
            ([0.0, 2.0], {"bounds": ([-INF, 1.5], [1.0, INF])}),
            ([2.0, 2.0], {"bounds": ([1.0, 1.5], [3.0, 3.0])}),
            ([-1.2, 1.0], {"bounds": ([-50.0, 0.0], [0.5, 100])}),
            ([-1.2, 1.0], {"bounds": ([-50, 0.0], [0.5, 100]), "x_scale": [1, 0.5]}),
            ([-1.2, 1.0], {"bounds": Bounds([-50.0, 0.0], [0.5, 100])}),
        )
    ),
    # SciPy never takes a Gauss-Newton step here, and needs 39 evaluations to our 6
    Minimum("m < n", one_residual, [-2.0, 1.0], {}, False),
    Minimum("m < n, bounds", one_residual, [-2.0, 1.0], {"bounds": (-3, 3)}, False),
    Minimum("a start on its bounds", count_like, [0.01, 1.0, 5.0],
            {"bounds": ([0.01, 0, 0], [INF, 10, 20.9])}),
    Minimum("gtol at a bound", lambda x: (x - 1e-12) ** 2, 1.1e-12,
            {"gtol": 1e-15, "bounds": (0, INF)}),
    Minimum("boundary value", boundary_value, np.ones(36), {"ftol": 1e-2}),
    Minimum("tridiagonal", tridiagonal, -np.ones(20)),
    Minimum("tridiagonal, bounds", tridiagonal, -np.ones(20),
            {"bounds": (np.linspace(-2, -1.5, 20), np.linspace(-0.8, 0.0, 20))}),
    *(
        Minimum(f"{getattr(loss, '__name__', loss)}, {kwargs}", fit, START,
                {"loss": loss, "f_scale": 0.1, **kwargs},
                # almost every row is scaled by its floor: J is singular to rounding
                same_path=not (loss == "cauchy" and not kwargs))
        for loss in LOSSES
        for kwargs in ({}, {"bounds": (0, [3.0, 1.0, 5.0])}, {"max_nfev": 1})
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", MINIMA, ids=[case.name for case in MINIMA])
def test_least_squares(case):
    value = jax.jit(lambda x, **kwargs: jnp.atleast_1d(case.fun(x, **kwargs)))
    slope = jax.jit(jax.jacfwd(value))
    kwargs = dict(case.kwargs)
    bound = {"a": kwargs["args"][0]} if "args" in kwargs else kwargs.get("kwargs", {})
    theirs = {k: v for k, v in kwargs.items() if k not in ("args", "kwargs")}
    if callable(kwargs.get("loss")):
        theirs["loss"] = lambda z: np.array(cubic(z))
    expected = scipy.optimize.least_squares(
        lambda x: np.asarray(value(x, **bound)),
        case.x0,
        lambda x: np.asarray(slope(x, **bound)),
        **theirs,
    )
    found = jaxfit.least_squares(case.fun, case.x0, **kwargs)
    assert found.success == expected.success
    if not case.same_path:
        np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-8, atol=1e-14)
        return
    for name in ("status", "message", "nfev"):
        assert found[name] == expected[name], name
    if expected.cost > 1e-20:  # below, rounding decides which point is the better
        assert found.njev == expected.njev
    scale = np.abs(expected.jac).max()
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(found.fun, expected.fun, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.jac, expected.jac, rtol=1e-5, atol=1e-7 * scale)
    np.testing.assert_allclose(found.grad, expected.grad, rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(
        found.optimality, expected.optimality, rtol=1e-3, atol=1e-7 * scale
    )
    np.testing.assert_array_equal(found.active_mask, expected.active_mask)
