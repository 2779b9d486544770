"""Everything public can be pickled and copied, and crosses to other processes."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import cloudpickle
import dask
import equinox as eqx
import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pytest

import jaxfit
from jaxfit import losses, models
from jaxfit.fitting.inference._bands import Band
from jaxfit.fitting.inference._bootstrap import Bootstrap
from jaxfit.fitting.inference._intervals import Contour, Profile

X = np.linspace(0, 4, 20)
Y = 2 * np.exp(-X) + 0.01 * np.cos(9 * X)
ENOUGH = jaxfit.Options(max_steps=1000, x_scale=1.0)
TOO_FEW = jaxfit.Options(max_steps=2, x_scale=1.0)


def decay(x, a, k):
    return a * jnp.exp(-k * x)


def residual(p, y):
    return decay(X, *p) - y


def fitted(options=ENOUGH):
    """What a worker does, or does not."""
    return jaxfit.fit(decay, X, Y, options=options)


@pytest.fixture(scope="module")
def fit():
    return fitted()


@pytest.fixture(scope="module")
def error():
    with pytest.raises(jaxfit.FitError) as caught:
        fitted(TOO_FEW)
    return caught.value


WAYS = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: pickle.loads(cloudpickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.fixture(params=WAYS)
def again(request):
    """A way to the same object anew."""
    return WAYS[request.param]


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, eqx.Module):
        assert eqx.tree_equal(found, expected, typematch=False)
    elif isinstance(expected, (jaxfit.Fit, jaxfit.BatchFit)):
        assert str(found) == str(expected)
        jax.tree.map(np.testing.assert_array_equal, found.numbers, expected.numbers)
        np.testing.assert_array_equal(found.predict(), expected.predict())
    else:
        plain = (
            dict if isinstance(expected, dict) else lambda v: getattr(v, "__dict__", v)
        )
        jax.tree.map(np.testing.assert_array_equal, plain(found), plain(expected))


SMALL = {
    "model": models.Gaussian(prefix="a_"),
    "sum": models.Gaussian() + models.Linear(),
    "product": models.Sine() * models.Exponential(prefix="b_"),
    "of a text": models.as_model("gaussian + b_gaussian + linear"),
    "of a function": models.as_model(decay),
    "loss": losses.Huber(0.5),
    "options": jaxfit.Options(ftol=1e-9, x_scale=np.ones(2), jac="fwd"),
    "jac": jaxfit.Options(jac=residual),
    "status": jaxfit.Status.STALLED,
    "whole": jaxfit.Whole(),
    "chunked": jaxfit.Chunked(8),
    "sharded": jaxfit.Sharded(None, "rows", 4),
    "shared": jaxfit.Shared(X),
    "weighted": jaxfit.Weighted((X, Y), X),
    "blocks": jaxfit.npy_blocks((X, jaxfit.Shared(Y)), 7),
    "band": Band(X, X, Y, Y),
    "profile": Profile("k", X, Y, np.ones((20, 2))),
    "contour": Contour(("a", "k"), (0.7,), np.ones((1, 20, 2))),
    "bootstrap": Bootstrap("case", ("a", "k"), np.ones((5, 2)), np.ones(5)),
}


@pytest.mark.parametrize("name", SMALL)
def test_what_is_given_and_what_is_returned(name, again):
    assert_same(again(SMALL[name]), SMALL[name])


def test_a_mesh_stays_in_its_process():
    """It is refused where it is sent, so that no pool waits for it."""
    mesh = jax.make_mesh((2,), ("rows",))
    with pytest.raises(TypeError, match="Device"):
        pickle.dumps(jaxfit.Sharded(mesh, "rows"))


def test_solutions(again):
    one = jaxfit.solve(residual, np.ones(2), Y)
    many = jaxfit.solve_batch(residual, np.ones(2), Y[None], in_axes=(None, 0))
    for solution in (one, many):
        assert_same(again(solution), solution)
    found = jaxfit.least_squares(residual, np.ones(2), args=(Y,))
    assert_same(again(found), found)


def test_fits(fit, again):
    copied = again(fit)
    assert_same(copied, fit)
    assert copied.report() == fit.report()
    intervals = fit.intervals("wald")
    assert str(again(intervals)) == str(intervals)
    assert again(fit.params) == fit.params
    batch = jaxfit.fit_batch(decay, X, Y[None])
    assert_same(again(batch), batch)


def test_errors(error, again):
    copied = again(error)
    assert type(copied) is jaxfit.FitError
    assert str(copied) == str(error)
    assert_same(copied.fit, error.fit)
    assert copied.fit.status == jaxfit.Status.MAX_STEPS


@pytest.mark.parametrize("change", [{}, {"tie": {"a": lambda p: 2 * p["k"]}}])
def test_what_holds_a_lambda_goes_by_cloudpickle(change):
    fit = jaxfit.fit(lambda x, a, k: decay(x, a, k), X, Y, **change)
    assert_same(pickle.loads(cloudpickle.dumps(fit)), fit)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(fit)


# Other processes


def by_executor(method):
    def run(work, argument):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(work, argument).result(timeout=120)

    return run


def by_pool(work, argument):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(work, (argument,)).get(timeout=120)


def by_joblib(work, argument):
    return joblib.Parallel(n_jobs=2)([joblib.delayed(work)(argument)])


def by_dask(work, argument):
    task = dask.delayed(work)(argument)
    return dask.compute(task, scheduler="processes", num_workers=1)


@pytest.mark.parametrize(
    ("run", "work"),
    [
        (by_executor("spawn"), fitted),
        (by_executor("forkserver"), fitted),
        (by_pool, fitted),
        (by_joblib, lambda options: fitted(options)),
        (by_dask, lambda options: fitted(options)),
    ],
    ids=["spawn", "forkserver", "pool", "loky", "dask"],
)
def test_an_error_comes_back_with_its_fit(run, work, error):
    with pytest.raises(jaxfit.FitError, match="found no solution") as caught:
        run(work, TOO_FEW)
    assert_same(caught.value.fit, error.fit)
