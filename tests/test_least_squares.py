"""What `least_squares` accepts and returns beside the answers of SciPy's.

`test_against_scipy` compares answers, `test_bad_input_scipy` errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import OptimizeResult

import jaxfit

T = np.linspace(0, 4, 30)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + np.where(np.arange(30) % 7 == 3, 1.0, 0.0)
START = [1.0, 1.0, 0.0]


def decay(x, t, y):
    return x[0] * jnp.exp(-x[1] * t) + x[2] - y


def valley(x):
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def in_numpy(x):
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def slope(x):
    return np.array([[-20 * x[0], 10], [-1, 0]])


def test_fields():
    """Every field of SciPy's result with SciPy's type, and ours."""
    bounds = ([-3, -3], [3, 0.5])
    found = jaxfit.least_squares(valley, [-2, 0.4], bounds=bounds)
    expected = scipy.optimize.least_squares(in_numpy, [-2, 0.4], slope, bounds)
    assert isinstance(found, OptimizeResult)
    assert set(found) == set(expected) | {"certified"}
    for name, value in expected.items():
        ours, theirs = np.asarray(found[name]), np.asarray(value)
        assert ours.dtype.kind == theirs.dtype.kind, name
        assert ours.shape == theirs.shape or theirs.dtype.kind == "U", name
    np.testing.assert_array_equal(found.active_mask, expected.active_mask)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-6)
    assert found.certified is True


def test_success_far_from_a_solution_is_not_certified():
    """SciPy's ftol passes in a plateau; our certificate does not."""
    found = jaxfit.least_squares(valley, [-2.0, 1.0], ftol=0.9, xtol=None, gtol=None)
    expected = scipy.optimize.least_squares(
        in_numpy, [-2.0, 1.0], slope, ftol=0.9, xtol=None, gtol=None
    )
    assert found.status == expected.status == 2
    assert found.success
    assert found.certified is False


def test_gradient_test_comes_first():
    """Status 1 wherever the scaled gradient is small, whatever else is."""
    for x0 in ([1.0, 1.0], [1 + 1e-12, 1.0]):
        found = jaxfit.least_squares(valley, x0)
        assert found.status == scipy.optimize.least_squares(in_numpy, x0, slope).status
        assert found.status == 1


@pytest.mark.parametrize(
    "x0", [2, 2.0, [2.0], np.array(2), np.array([2.0], np.float32)]
)
def test_forms_of_x0(x0):
    found = jaxfit.least_squares(lambda x, a: x - a, x0, args=(3.0,))
    np.testing.assert_allclose(found.x, [3.0], rtol=1e-9)
    assert found.x.dtype == np.float64


def test_arguments_of_all_kinds():
    """Arrays and floats are inputs; what else there is belongs to the program."""

    def fun(x, t, y, *, power, name):
        assert name == "decay"
        assert isinstance(power, int)
        return decay(x, t, y) * 2.0**power

    found = jaxfit.least_squares(
        fun, START, args=(T.tolist(), Y), kwargs={"power": 1, "name": "decay"}
    )
    plain = jaxfit.least_squares(decay, START, args=(T, Y))
    np.testing.assert_allclose(found.x, plain.x, rtol=1e-6)
    np.testing.assert_allclose(found.cost, 4 * plain.cost, rtol=1e-9)


def test_arrays_in_another_byte_order():
    args = T.astype(">f4"), np.arange(30, dtype=">i8")
    found = jaxfit.least_squares(
        lambda x, t, i: x[0] * t - i.astype(float), [1.0], args=args
    )
    np.testing.assert_allclose(found.x, [29 / 4], rtol=1e-6)


def test_jac_receives_the_arguments():
    calls = []

    def jac(x, t, y):
        calls.append(1)
        return jax.jacfwd(decay)(x, t, y)

    found = jaxfit.least_squares(decay, START, jac, args=(T, Y))
    assert calls
    plain = jaxfit.least_squares(decay, START, args=(T, Y))
    np.testing.assert_allclose(found.x, plain.x, rtol=1e-9)


def test_a_loss_of_the_library():
    found = jaxfit.least_squares(
        decay, START, args=(T, Y), loss=jaxfit.losses.Huber(0.1)
    )
    named = jaxfit.least_squares(decay, START, args=(T, Y), loss="huber", f_scale=0.1)
    np.testing.assert_allclose(found.x, named.x, rtol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "lsmr"])
def test_tr_solver(solver):
    found = jaxfit.least_squares(
        valley, [2.0, 2.0], tr_solver=solver, tr_options={"regularize": False}
    )
    np.testing.assert_allclose(found.x, [1, 1], rtol=1e-6)


def test_one_evaluation():
    found = jaxfit.least_squares(valley, [-2.0, 1.0], max_nfev=1)
    assert found.nfev == found.njev == 1
    assert found.status == 0
    assert not found.success
    np.testing.assert_array_equal(found.x, [-2, 1])
    np.testing.assert_allclose(found.fun, in_numpy([-2.0, 1.0]))


# Callbacks and tables


def path(function, fun, stop_after=None, **kwargs):
    """The points that a callback sees, by SciPy's two signatures."""
    points, results = [], []

    def of_x(x):
        points.append(np.array(x))
        if len(points) == stop_after:
            raise StopIteration
        return True  # which SciPy does not look at

    def of_result(intermediate_result):
        results.append(intermediate_result)
        if len(results) == stop_after:
            raise StopIteration

    found = [
        function(fun, [-2.0, 1.0], callback=callback, **kwargs)
        for callback in (of_x, of_result)
    ]
    return points, results, found


@pytest.mark.parametrize("stop_after", [None, 3])
def test_callback(stop_after):
    points, results, found = path(jaxfit.least_squares, valley, stop_after)
    theirs, their_results, expected = path(
        scipy.optimize.least_squares, in_numpy, stop_after, jac=slope
    )
    assert len(points) == len(theirs)
    np.testing.assert_allclose(points, theirs, rtol=1e-6, atol=1e-9)
    for ours, other in zip(results, their_results, strict=True):
        assert set(other) <= set(ours)
        assert ours.nit == other.nit
        assert ours.nfev == other.nfev
        np.testing.assert_allclose(ours.x, other.x, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(ours.fun, other.fun, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(ours.cost, other.cost, rtol=1e-5, atol=1e-14)
    for ours, other in zip(found, expected, strict=True):
        assert ours.status == other.status
        assert ours.message == other.message
        assert ours.nfev == other.nfev


def test_a_watched_fit_is_the_same_fit():
    watched = jaxfit.least_squares(valley, [-2.0, 1.0], callback=lambda x: None)
    plain = jaxfit.least_squares(valley, [-2.0, 1.0])
    for name in ("x", "cost", "nfev", "njev", "status", "optimality"):
        np.testing.assert_allclose(watched[name], plain[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_verbose(verbose, capsys):
    """SciPy's lines: the same words and numbers."""
    jaxfit.least_squares(valley, [-2.0, 1.0], verbose=verbose)
    ours = capsys.readouterr().out.splitlines()
    scipy.optimize.least_squares(in_numpy, [-2.0, 1.0], slope, verbose=verbose)
    theirs = capsys.readouterr().out.splitlines()
    assert len(ours) == len(theirs)
    for a, b in zip(ours[:-3], theirs[:-3], strict=True):
        assert a.split() == b.split()  # the last gains are rounding
    assert [len(line.split()) for line in ours] == [len(b.split()) for b in theirs]
