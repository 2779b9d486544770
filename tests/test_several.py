"""Several data sets in one `fit`: beside one fit of all points with an index."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import losses, models

MODEL = models.Gaussian() + models.Constant()
X = [np.linspace(0, 10, 60), np.linspace(2, 7, 35)]
SIGMA = [0.1, 0.05]
RANDOM = np.random.default_rng(0)
TRUTH = [
    {"height": 3.0, "center": 4.0, "width": 0.7, "c": 1.0},
    {"height": 1.5, "center": 4.0, "width": 0.7, "c": 0.5},
]
Y = [
    np.asarray(MODEL(x, truth)) + sigma * RANDOM.normal(size=x.size)
    for x, truth, sigma in zip(X, TRUTH, SIGMA, strict=True)
]
LOCAL = ("height", "c")
NAMES = ["height_1", "height_2", "center", "width", "c_1", "c_2"]
BOTH = np.stack([np.concatenate(X), np.repeat([0.0, 1.0], [60, 35])])
SIGMAS = np.repeat(SIGMA, [60, 35])


def indexed(x, height_1, height_2, center, width, c_1, c_2):
    height, c = (jnp.where(x[1] == 0, *v) for v in ((height_1, height_2), (c_1, c_2)))
    return height * jnp.exp(-0.5 * ((x[0] - center) / width) ** 2) + c


@pytest.fixture(scope="module")
def fit():
    return jaxfit.fit(MODEL, X, Y, sigma=SIGMA, local=LOCAL)


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({}, {}),
        (
            {"loss": losses.Huber(1.5), "bounds": {"height": (0, 2)}},
            {
                "loss": losses.Huber(1.5),
                "bounds": {"height_1": (0, 2), "height_2": (0, 2)},
            },
        ),
    ],
)
def test_it_is_the_fit_of_all_points(settings, theirs, fit):
    ours = jaxfit.fit(MODEL, X, Y, sigma=SIGMA, local=LOCAL, **settings)
    start = dict(zip(NAMES, [1.9, 1.5, 4.0, 0.7, 1.0, 0.5], strict=True))
    other = jaxfit.fit(
        indexed, BOTH, np.concatenate(Y), sigma=SIGMAS, p0=start, **theirs
    )
    assert list(ours.values) == NAMES
    np.testing.assert_allclose(ours.numbers.x, other.numbers.x, rtol=1e-5)
    np.testing.assert_allclose(ours.covariance, other.covariance, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(ours.goodness, other.goodness, rtol=1e-6)


def test_what_is_asked_of_one_data_set(fit, tmp_path):
    fit.save(tmp_path / "fit.npz")
    for one in (fit, jaxfit.Fit.load(tmp_path / "fit.npz")):
        for k, (x, y) in enumerate(zip(X, Y, strict=True)):
            own = [one.values[n] for n in (f"height_{k + 1}", "center", "width")]
            curve = own[0] * np.exp(-0.5 * ((x - own[1]) / own[2]) ** 2)
            curve = curve + one.values[f"c_{k + 1}"]
            np.testing.assert_allclose(one.residuals[k], y - curve, atol=1e-9)
            np.testing.assert_allclose(one.best_fit[k], curve)
            np.testing.assert_allclose(one.predict(x[:4], data_set=k + 1), curve[:4])
            parts = one.components(x, data_set=k + 1)
            np.testing.assert_allclose(sum(parts.values()), curve)
            chi_square = np.sum((y - curve) ** 2) / SIGMA[k] ** 2
            text = f"Data set {k + 1}: {x.size} points, chi² {chi_square:.5g}."
            assert text in str(one)
            assert text in one.report()
            band = one.confidence_band(x, data_set=k + 1)
            wide = one.prediction_band(x, data_set=k + 1)
            scatter = SIGMA[k] * np.sqrt(one.reduced_chi_square)
            np.testing.assert_allclose(wide.stderr, np.hypot(band.stderr, scatter))
    other = jaxfit.fit(indexed, BOTH, np.concatenate(Y), sigma=SIGMAS, p0=fit.values)
    bands = [fit.confidence_band(data_set=k + 1).stderr for k in range(2)]
    np.testing.assert_allclose(
        np.concatenate(bands), other.confidence_band().stderr, rtol=1e-3, atol=1e-7
    )


def test_intervals_bootstrap_and_pictures(fit):
    np.testing.assert_allclose(
        fit.intervals("profile")["center"], fit.intervals()["center"], rtol=1e-3
    )
    for resample in ("residual", "case", "parametric"):
        errors = fit.bootstrap(400, resample).stderr
        assert errors["center"] == pytest.approx(fit.errors["center"], rel=0.2)
    figure = fit.plot()
    texts = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert {"data 1", "data 2", "fit 1", "fit 2"} <= texts
    assert len(fit.plot_residuals().axes) == 2


def test_pairs_share_everything_by_default():
    pairs = jaxfit.fit(MODEL, list(zip(X, Y, strict=True)))
    lists = jaxfit.fit(MODEL, X, Y)
    plain = jaxfit.fit(MODEL, np.concatenate(X), np.concatenate(Y))
    for fit in (pairs, lists):
        assert list(fit.values) == list(MODEL.names)
        np.testing.assert_allclose(fit.numbers.x, plain.numbers.x, rtol=1e-5)
    assert pairs.derived.keys() == plain.derived.keys()


def test_any_model_and_any_points():
    def rows(x, a, b):  # not pointwise, and of two coordinates
        return a * (x[0] - jnp.mean(x[0])) + b * x[1]

    grids = [np.meshgrid(np.arange(4.0), np.arange(m)) for m in (3.0, 5.0)]
    x = [tuple(map(np.asarray, grid)) for grid in grids]
    y = [np.asarray(rows(at, a, 2.0)) for at, a in zip(x, (1.0, 3.0), strict=True)]
    fit = jaxfit.fit(rows, x, y, local="a")
    expected = {"a_1": 1.0, "a_2": 3.0, "b": 2.0}
    assert fit.values == pytest.approx(expected)
    assert [part.shape for part in fit.residuals] == [(3, 4), (5, 4)]


def test_points_that_are_left_out_and_settings_for_all():
    lost = np.where(np.arange(35) == 3, np.nan, Y[1])
    settings = {"fixed": {"c": 0.8}, "p0": {"height": 2.0}}
    fit = jaxfit.fit(MODEL, X, [Y[0], lost], local=LOCAL, nan_policy="omit", **settings)
    assert fit.ndata == 94
    assert np.flatnonzero(np.isnan(fit.residuals[1])).tolist() == [3]
    assert fit.values["c_1"] == fit.values["c_2"] == 0.8


def test_dates_count_from_the_first_of_the_first():
    begin = np.datetime64("2024-01-05")
    x = [begin + np.arange(30), begin + np.arange(-5, 7)]
    y = [2 + 0.5 * (at - begin).astype(float) for at in x]
    fit = jaxfit.fit("linear", x, y)
    assert fit.values == pytest.approx({"slope": 0.5, "intercept": 2.0})
    assert "x: days since 2024-01-05." in str(fit)
    assert fit.predict(x[1][:1], data_set=2) == pytest.approx(-0.5)


def test_lists_of_numbers_and_tuples_of_arrays_stay_what_they_were():
    def plane(x, a, b):
        return a * x[0] + b * x[1]

    coordinates = tuple(np.random.default_rng(0).normal(size=(2, 9)))
    fit = jaxfit.fit(plane, coordinates, 2 * coordinates[0] + coordinates[1])
    assert fit.residuals.shape == (9,)
    rows = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert jaxfit.fit("linear", rows, rows).residuals.shape == (2, 3)
    assert jaxfit.fit("linear", rows[0], rows[1]).residuals.shape == (3,)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"local": "z"}, ValueError, "local names 'z'; the parameters are height"),
        ({"x": X[:1]}, ValueError, "x is a list of 1 data sets, and y of 2"),
        ({"x": X[0], "y": Y[0]}, ValueError, "local is .*, and there is one data set"),
        ({"x": X[0], "y": None}, TypeError, "y is missing"),
        ({"sigma": SIGMAS}, ValueError, r"sigma has the shape \(95,\); for several"),
        ({"sigma": [0.1]}, ValueError, "sigma is a list of 1; y is one of 2"),
        ({"sigma": [0.1, None]}, ValueError, "sigma is None for some"),
        ({"sigma": [np.eye(60), 1.0]}, ValueError, "do not go with a covariance"),
        ({"y": [Y[0], Y[1] + 1j]}, ValueError, "do not go with complex y"),
        ({"y": [Y[0], Y[0]]}, ValueError, r"x has the shape \(35,\) and y \(60,\)"),
    ],
)
def test_what_is_wrong_is_told(change, kind, words):
    settings = {"x": X, "y": Y, "sigma": None, "local": LOCAL, **change}
    with pytest.raises(kind, match=words):
        jaxfit.fit(MODEL, settings.pop("x"), settings.pop("y"), **settings)


def test_which_data_set_has_to_be_said(fit):
    for data_set in (None, 0, 3):
        with pytest.raises(ValueError, match="say which, data_set=1 to 2"):
            fit.predict(X[0], data_set=data_set)
    with pytest.raises(ValueError, match="say which"):
        fit.confidence_band()
