"""`JaxFitter` beside astropy's own fitters, on astropy's models."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.modeling import custom_model, fitting, models
from astropy.utils.exceptions import AstropyUserWarning
from numpy.testing import assert_allclose

from jaxfit.interop.astropy import JaxFitter

X = np.linspace(-5, 5, 60)
NOISE = np.random.default_rng(0).normal(size=60)
Y = 3 * np.exp(-((X - 0.4) ** 2) / 2) + 0.1 + 0.05 * NOISE
LINEAR = "ignore:Model is linear in parameters"  # astropy's, of linear ones


@custom_model
def hump(x, height=1.0, rate=1.0):
    return height * np.exp(-rate * x**2)


def both(model, *data, **keywords):
    """The model fitted by us and by astropy, at its tightest.

    By differences: the derivatives that its models have know nothing of ties.
    """
    ours = JaxFitter(calc_uncertainties=True)
    theirs = fitting.TRFLSQFitter(calc_uncertainties=True)
    fitted = ours(model, *data, **keywords)
    tight = {"acc": 1e-15, "maxiter": 1000, "estimate_jacobian": True}
    other = theirs(model, *data, **tight, **keywords)
    assert ours.fit_info["success"]
    least = np.sum(theirs.fit_info["fun"] ** 2)
    assert np.sum(ours.fit_info["fvec"] ** 2) <= least * (1 + 1e-10)
    assert fitted is not model
    return fitted, other


def check(fitted, other):
    stds = np.array(other.stds.stds)
    near = 1e-3 * np.max(stds)  # where its differences end
    assert_allclose(fitted.parameters, other.parameters, rtol=1e-6, atol=near)
    assert_allclose(fitted.stds.stds, stds, rtol=1e-3)
    ours, theirs = (
        model.cov_matrix.cov_matrix / np.outer(stds, stds) for model in (fitted, other)
    )
    assert_allclose(ours, theirs, atol=2e-3)
    assert fitted.stds.param_names == other.stds.param_names


PLAIN = {
    "gaussian": lambda: models.Gaussian1D(1.0, 0.0, 1.2),
    "lorentz": lambda: models.Lorentz1D(1.0, 0.0, 1.0),
    "moffat": lambda: models.Moffat1D(2.0, 0.0, 3.0, 3.0),
    "sum": lambda: models.Gaussian1D(1.0, 0.0, 1.2) + models.Polynomial1D(1),
    "product": lambda: (
        models.Gaussian1D(1.0, 0.0, 1.2)
        * models.Polynomial1D(1, c0=1, c1=0.02, fixed={"c0": True, "c1": True})
    ),
    "one after the other": lambda: (
        models.Shift(-0.1) | models.Gaussian1D(2.0, 0.0, 1.2, fixed={"mean": True})
    ),
    "custom": lambda: hump(2.0, 0.5),
}


@pytest.mark.parametrize("case", PLAIN)
def test_one_coordinate(case):
    model = PLAIN[case]()
    check(*both(model, X, Y))
    check(*both(model, X, Y, weights=1 / (0.05 + 0.02 * X**2)))


def test_two_coordinates():
    u, v = np.meshgrid(np.linspace(-3, 3, 12), np.linspace(-3, 3, 11))
    noise = np.random.default_rng(2).normal(size=u.shape)
    z = models.Gaussian2D(2, 0.3, -0.2, 1, 0.7, 0.3)(u, v) + 0.02 * noise
    model = models.Gaussian2D(1.5, 0.0, 0.0, 1.2, 0.5, 0.2)
    model.theta.fixed = True
    # without weights astropy counts rows of the image for points, and errs by that
    fitted, other = both(model, u, v, z, weights=np.full(u.shape, 50.0))
    check(fitted, other)
    assert fitted.theta == 0.2
    assert len(fitted.stds.stds) == 5
    alone = JaxFitter(calc_uncertainties=True)(model, u, v, z)
    residual = alone(u, v) - z
    variance = np.sum(residual**2) / (z.size - 5)
    assert_allclose(
        alone.stds.stds, np.array(fitted.stds.stds) * 50 * np.sqrt(variance), rtol=1e-6
    )


def pair():
    return models.Gaussian1D(1, -1, 1, name="first") + models.Gaussian1D(2, 1, 1)


TIES = {
    "the parameter": {"stddev_1": lambda m: m.stddev_0},
    "its value": {"stddev_1": lambda m: 1.5 * m.stddev_0.value},
    "a function": {"mean_1": lambda m: m.mean_0 + np.sqrt(1 + m.stddev_0**2)},
    "a part by number": {"mean_1": lambda m: m[0].mean + 2},
    "a part by name": {"mean_1": lambda m: m["first"].mean.value + 2},
    "two": {"stddev_1": lambda m: m.stddev_0, "mean_1": lambda m: m.mean_0 + 2.0},
}


@pytest.mark.parametrize("case", TIES)
def test_ties(case):
    true = pair()
    true.mean_0, true.mean_1, true.stddev_0 = -0.8, 1.3, 0.7
    for name, tie in TIES[case].items():
        setattr(true, name, tie(true))
    y = true(X) + 0.02 * NOISE
    model = pair()
    for name, tie in TIES[case].items():
        getattr(model, name).tied = tie
    fitted, other = both(model, X, y)
    check(fitted, other)
    for name, tie in TIES[case].items():
        assert_allclose(getattr(fitted, name), tie(fitted), rtol=1e-12)


def test_bounds():
    model = models.Gaussian1D(1.0, 0.0, 1.0, bounds={"amplitude": (0, 2.5)})
    fitted, other = both(model, X, Y)
    assert fitted.amplitude == 2.5
    assert_allclose(fitted.parameters, other.parameters, rtol=1e-4)


def test_points_that_are_not_finite():
    y = Y.copy()
    y[3] = np.nan
    with pytest.raises(fitting.NonFiniteValueError, match="1 of 60 points"):
        JaxFitter()(models.Gaussian1D(), X, y)
    with pytest.warns(AstropyUserWarning, match="has been removed"):
        fitted = JaxFitter()(models.Gaussian1D(), X, y, filter_non_finite=True)
    kept = np.isfinite(y)
    alone = JaxFitter()(models.Gaussian1D(), X[kept], y[kept])
    assert_allclose(fitted.parameters, alone.parameters, rtol=1e-10)
    with pytest.raises(ValueError, match="All input data"):
        JaxFitter()(models.Gaussian1D(), X, 0 * X + np.nan, filter_non_finite=True)


def test_masked_points_are_left_out():
    masked = np.ma.masked_array(Y.copy(), mask=X > 4)
    masked.data[X > 4] = 99
    weights = np.linspace(1, 2, 60)
    fitted = JaxFitter()(models.Gaussian1D(), X, masked, weights=weights)
    kept = X <= 4
    alone = JaxFitter()(models.Gaussian1D(), X[kept], Y[kept], weights=weights[kept])
    assert_allclose(fitted.parameters, alone.parameters, rtol=1e-10)


def fixed():
    return models.Gaussian1D(fixed=dict.fromkeys(("amplitude", "mean", "stddev"), True))


def tied_to_what_is_not_there():
    model = pair()
    model.mean_1.tied = lambda m: m.left.mean
    return model


WRONG = {
    "fixed": (fixed, (X, Y), "let one vary"),
    "tied": (tied_to_what_is_not_there, (X, Y), "asks for 'left'; it may ask"),
    "outputs": (lambda: hump() & hump(), (X, Y, Y), "has 2 outputs"),
    "shapes": (hump, (X, Y[:4]), "same shape"),
    "start": (lambda: hump(np.nan), (X, Y), "must be finite"),
    "outside": (lambda: hump(bounds={"rate": (2, 3)}), (X, Y), "outside of provided"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case):
    model, data, words = WRONG[case]
    with pytest.raises((ValueError, AttributeError), match=words):
        JaxFitter()(model(), *data)


def test_a_fit_that_fails_warns_and_says_where_it_stood():
    fitter = JaxFitter(calc_uncertainties=True)
    with pytest.warns(AstropyUserWarning, match="may be unsuccessful"):
        fitted = fitter(models.Gaussian1D(), X, Y, maxiter=3)
    assert not fitter.fit_info["success"]
    assert "max_nfev" in fitter.fit_info["message"]
    assert fitter.fit_info["param_cov"] is None
    assert fitted.stds is None
    start = np.sum((models.Gaussian1D()(X) - Y) ** 2)
    assert np.sum((fitted(X) - Y) ** 2) < start


def test_in_place_and_units():
    model = models.Gaussian1D()
    assert JaxFitter()(model, X, Y, inplace=True) is model
    jansky, micron = units.Jy, units.um
    dressed = models.Gaussian1D(1 * jansky, 0 * micron, 1 * micron)
    fitted = JaxFitter()(dressed, X * micron, Y * jansky)
    assert_allclose(fitted.amplitude.quantity.to_value("mJy"), 1e3 * model.amplitude)
    assert fitted.mean.unit == micron


@pytest.mark.filterwarnings(LINEAR)
def test_a_linear_model():
    fitted = JaxFitter(calc_uncertainties=True)(models.Polynomial1D(2), X, Y)
    assert_allclose(fitted.parameters, np.polyfit(X, Y, 2)[::-1], rtol=1e-9)


def test_outliers_are_removed_around_it():
    def far(residual, **_):
        return np.ma.masked_where(np.abs(residual) > 0.3, residual)

    y = Y.copy()
    y[10] += 5
    fitter = fitting.FittingWithOutlierRemoval(JaxFitter(), far, niter=3)
    fitted, mask = fitter(models.Gaussian1D(2.0, 0.0, 1.0), X, y)
    assert mask[10]
    assert_allclose(fitted.amplitude, 3.05, atol=0.1)


SCRIPT = """
import numpy as np
from astropy.modeling import custom_model, models
from jaxfit.interop.astropy import JaxFitter

x, traced, counts = np.linspace(-5, 5, 60), [], []

@custom_model
def counted(x, height=1.0, rate=1.0):
    traced.append(type(x) is not np.ndarray)  # and not NumPy's own turn
    return height * np.exp(-rate * x**2)

for k in range(4):
    model = counted(1 + 0.1 * k, 0.5) + models.Polynomial1D(1, c0=0.1 * k)
    model.c1_1.fixed, model.c1_1 = True, 0.01 * k
    y = np.exp(-(x**2)) + 0.01 * np.sin(7 * x) + 0.1 * k
    assert JaxFitter()(model, x, y).c1_1 == 0.01 * k
    counts.append(sum(traced))
print(len(set(counts)), counts[0] > 0)
"""


def test_other_numbers_compile_nothing():
    """In a process of its own: under test, what we call is wrapped."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True
    )
    assert done.stdout == "1 True\n", done.stderr


def test_astropy_finds_it_by_itself():
    """In a fresh process: astropy loads entry points while it is being imported."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    ((name, value),) = tomllib.loads(text)["project"]["entry-points"][
        "astropy.modeling"
    ].items()
    module, attribute = value.split(":")
    script = (
        "from astropy.modeling import fitting\n"
        f"from {module} import {attribute}\n"
        f"print(fitting.{name} is {attribute}, issubclass({attribute}, fitting.Fitter))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True
    )
    assert done.stdout == "True True\n", done.stderr
