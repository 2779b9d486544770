"""With SciPy's constants the path is SciPy's: point by point, until both stop."""

import functools

import jax
import jax.numpy as jnp
import nist
import numpy as np
import pytest
from scipy.optimize import least_squares

from jaxfit import losses
from jaxfit._core.certificate import RUNNING
from jaxfit._core.options import Limits
from jaxfit._core.parameters import Parameters
from jaxfit._core.rules import SCIPY
from jaxfit._core.setting import Setting, initial_state
from jaxfit._core.trip import trip
from jaxfit._rows.predictions import kind_of
from jaxfit._rows.visit import ResidualModel, visit

SCIPY_LOSSES = {
    "soft_l1": losses.SoftL1,
    "huber": losses.Huber,
    "cauchy": losses.Cauchy,
    "arctan": losses.Arctan,
}


def our_path(residual, x0, data, bounds, loss, tolerance=1e-8):
    """Accepted points and status of the core with SciPy's tests and acceptance."""
    parameters = Parameters(x0)
    model = ResidualModel(residual, None, parameters.unravel, loss)
    evaluate = visit(None, model, data, None, x0).linearize
    setting = Setting(
        limits=Limits(*[jnp.asarray(tolerance)] * 3, jnp.int32(100 * len(x0))),
        bounds=parameters.bounds(bounds),
        x_scale=jnp.ones(len(x0)),
        kind=kind_of(loss),
        rules=SCIPY,
    )
    state = initial_state(setting, x0)
    one_trip = jax.jit(functools.partial(trip, evaluate, setting))
    path = []
    while state.status == RUNNING:
        steps, state = state.steps, one_trip(state)
        if state.steps > steps:
            path.append(np.asarray(state.point.x))
    return np.array(path), int(state.status), int(state.nfev)


def scipy_path(residual, x0, data, bounds, loss, f_scale, tolerance=1e-8):
    """The same from SciPy's trf with an exact Jacobian."""
    value = jax.jit(lambda x: residual(x, data))
    jacobian = jax.jit(jax.jacfwd(lambda x: residual(x, data)))
    path = []

    def callback(intermediate_result):
        path.append(intermediate_result.x.copy())

    result = least_squares(
        lambda x: np.asarray(value(x)),
        x0,
        lambda x: np.asarray(jacobian(x)),
        bounds=(-np.inf, np.inf) if bounds is None else bounds,
        loss=loss,
        f_scale=f_scale,
        ftol=tolerance,
        xtol=tolerance,
        gtol=tolerance,
        callback=callback,
    )
    path = [
        p
        for p, q in zip(path, [None, *path[:-1]], strict=True)
        if not np.array_equal(p, q)
    ]
    return np.array(path), result.status, result.nfev


def assert_same_path(residual, x0, data, bounds=None, loss=None, f_scale=1.0):
    x0 = jnp.asarray(x0, float)
    ours = None if loss is None else SCIPY_LOSSES[loss](f_scale)
    path, status, nfev = our_path(residual, x0, data, bounds, ours)
    expected, scipy_status, scipy_nfev = scipy_path(
        residual, x0, data, bounds, loss or "linear", f_scale
    )
    np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-9)
    assert (status, nfev) == (scipy_status, scipy_nfev)


UNBOUNDED = [
    ("Chwirut2", 0),
    ("DanWood", 0),
    ("Misra1a", 1),
    ("BoxBOD", 1),
    ("Eckerle4", 1),
    ("Gauss1", 0),
    ("Rat42", 0),
    ("Rat43", 1),
    ("Kirby2", 1),
    ("Roszman1", 0),
]


@pytest.mark.parametrize(("name", "start"), UNBOUNDED)
def test_unbounded(name, start):
    problem = nist.load(name)
    assert_same_path(problem.residual, problem.starts[start], problem.data)


BOUNDED = [
    ("DanWood", 1, [0.5, 3.0], [0.75, 6.0]),
    ("Misra1a", 1, [245.0, 0.0], [300.0, 0.01]),
    ("BoxBOD", 1, [0.0, 0.0], [200.0, 10.0]),
    ("Rat42", 0, [80.0, 0.0, 0.0], [200.0, 5.0, 1.0]),
    ("Chwirut2", 0, [0.0, 0.0, 0.0], [0.15, 1.0, 1.0]),
    ("Eckerle4", 1, [1.0, 3.0, 400.0], [3.0, 6.0, 451.0]),
]


@pytest.mark.parametrize(("name", "start", "lower", "upper"), BOUNDED)
def test_bounded(name, start, lower, upper):
    problem = nist.load(name)
    bounds = np.array(lower), np.array(upper)
    assert_same_path(problem.residual, problem.starts[start], problem.data, bounds)


def rosenbrock(x, data):
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


@pytest.mark.parametrize(
    ("x0", "bounds"),
    [
        ([-2.0, 1.0], None),
        ([-2.0, 2.0], ([-np.inf, 1.5], [np.inf, np.inf])),
        ([2.0, 2.0], ([-np.inf, 1.5], [np.inf, np.inf])),
        ([-2.0, 1.5], ([-np.inf, 1.5], [np.inf, np.inf])),
        ([0.0, 2.0], ([-np.inf, 1.5], [np.inf, np.inf])),
        ([-1.0, 1.0], ([-3.0, -3.0], [0.5, 3.0])),
    ],
)
def test_rosenbrock(x0, bounds):
    if bounds is not None:
        bounds = tuple(np.array(b) for b in bounds)
    assert_same_path(rosenbrock, x0, None, bounds)


@pytest.mark.parametrize("loss", SCIPY_LOSSES)
def test_robust(loss):
    rng = np.random.default_rng(3)
    t = np.linspace(0, 10, 40)
    y = 0.5 + 2 * np.exp(-t) + 0.05 * rng.normal(size=40)
    y[::9] += 1.5

    def residual(x, data):
        return x[0] + x[1] * jnp.exp(-x[2] * data[0]) - data[1]

    assert_same_path(residual, [0.6, 1.5, 0.8], (t, y), loss=loss, f_scale=0.2)
