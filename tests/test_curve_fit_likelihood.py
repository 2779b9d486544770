"""`curve_fit` with likelihoods: what `fit` gives, and what does not go together."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxfit import curve_fit, fit, least_squares, losses

T = np.linspace(0, 6, 64)
POISSON = losses.Poisson()
START, BOUNDS = [3.0, 2.0, 0.5], ([0, 0.1, 0], np.inf)
COUNTS = np.random.default_rng(0).poisson(6 * np.exp(-T / 1.2) + 1).astype(float)
NUMBERS = 1.0 + np.arange(T.size) % 3
CAMERA = losses.PoissonGaussian(NUMBERS)


def decay(t, a, k, b):
    return a * jnp.exp(-t / k) + b


def in_numpy(t, a, k, b):
    return a * np.exp(-t / k) + b


def slopes(t, a, k, b):
    e = jnp.exp(-t / k)
    return jnp.stack([e, a * e * t / k**2, jnp.ones_like(t)], axis=1)


def by_fit(y=COUNTS, loss=POISSON, t=T):
    names = "a", "k", "b"
    bounds = dict(zip(names, [(0, None), (0.1, None), (0, None)], strict=True))
    return fit(decay, t, y, p0=START, bounds=bounds, loss=loss)


def found(f=decay, y=COUNTS, loss=POISSON, **settings):
    settings = {"p0": START, "bounds": BOUNDS} | settings
    return curve_fit(f, settings.pop("t", T), y, loss=loss, **settings)


WAYS = {
    "plain": {},
    "rowwise": {"rowwise": True},
    "jac": {"jac": slopes},
    "numpy": {"f": in_numpy},
    "host": {"f": in_numpy, "host": True},
    "image": {"t": T.reshape(8, 8), "y": COUNTS.reshape(8, 8)},
    "dogbox": {"method": "dogbox"},
    "scaled": {"x_scale": [1.0, 1.0, 1.0]},
    "tolerances": {"xtol": 1e-10, "ftol": 1e-12, "gtol": 1e-10},
    "watched": {"callback": lambda intermediate_result: None},
    "absolute": {"absolute_sigma": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_fit(way):
    popt, pcov = found(**WAYS[way])
    ours, errors = by_fit(), list(by_fit().errors.values())
    assert_allclose((popt - ours.numbers.x) / errors, 0, atol=1e-6)
    assert_allclose(pcov, ours.covariance, rtol=1e-5)


@pytest.mark.parametrize("rowwise", [False, True])
def test_numbers_of_each_point(rowwise):
    popt, pcov = found(loss=CAMERA, rowwise=rowwise)
    ours = by_fit(loss=CAMERA)
    assert_allclose(popt, ours.numbers.x, rtol=1e-8)
    assert_allclose(pcov, ours.covariance, rtol=1e-8)
    image = losses.PoissonGaussian(NUMBERS.reshape(8, 8))
    again, _ = found(t=T.reshape(8, 8), y=COUNTS.reshape(8, 8), loss=image)
    assert_allclose(again, popt, rtol=1e-8)


def test_the_tuple_of_five():
    popt, _, details, message, status = found(full_output=True)
    mean = in_numpy(T, *popt)
    assert_allclose(details["fvec"], (mean - COUNTS) / np.sqrt(mean), rtol=1e-10)
    columns = np.asarray(slopes(T, *popt)) / np.sqrt(mean)[:, None]
    upper = np.triu(details["fjac"].T[:3])
    pivots = details["ipvt"] - 1
    assert_allclose(upper.T @ upper, (columns.T @ columns)[np.ix_(pivots, pivots)])
    assert status > 0
    assert "Converged" in message


def test_points_that_do_not_count():
    gone = np.arange(T.size) == 5
    ours = by_fit(COUNTS[~gone], t=T[~gone]).numbers.x
    masked, _ = found(y=np.ma.masked_array(np.where(gone, -9, COUNTS), gone))
    omitted, _ = found(y=np.where(gone, np.nan, COUNTS), nan_policy="omit")
    assert_allclose(masked, ours, rtol=1e-8)
    assert_array_equal(masked, omitted)
    words = "has 64 numbers, and 63 points of `ydata` are left to fit.* that is left"
    with pytest.raises(ValueError, match=words):
        found(y=np.where(gone, np.nan, COUNTS), nan_policy="omit", loss=CAMERA)


WRONG = {
    "sigma": ({"sigma": 1.0}, "leave out `sigma`"),
    "covariance": ({"sigma": np.eye(64)}, "leave out `sigma`"),
    "negative": ({"y": np.where(T > 5, -1, COUNTS)}, r"observed\[53\] is -1.0 and 10"),
    "trials": ({"loss": losses.Binomial(NUMBERS)}, "to the number of trials"),
    "length": ({"loss": losses.PoissonGaussian(np.ones(5))}, "has 5 numbers, and 64"),
    "complex": ({"y": COUNTS + 1j}, "must be real"),
    "f_scale": ({"f_scale": 2.0}, "a likelihood, which has none"),
    "start": ({"p0": [-3.0, 2.0, 0.5], "bounds": (-np.inf, np.inf)}, "p0 is"),
    "name": ({"loss": "poisson"}, "it must be one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_told(name):
    settings, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        found(**settings)


def test_failures_are_told():
    with pytest.raises(RuntimeError, match="with the cost"):
        found(max_nfev=2)
    with pytest.raises(TypeError, match=r"judges predictions.*or curve_fit and fit"):
        least_squares(lambda x: x - 1, [0.0], loss=POISSON)
