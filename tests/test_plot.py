"""Pictures: each is drawn, and shows the numbers that it should show."""

import sys

import matplotlib
import numpy as np
import pytest

import jaxfit
from jaxfit import models
from jaxfit.fitting.inference._intervals import SIGMAS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

X = np.linspace(0, 10, 60)[::-1]  # pictures sort it
MODEL = models.Gaussian() + models.Linear()
TRUTH = {"height": 5.0, "center": 4.0, "width": 0.8, "slope": 0.2, "intercept": 1.0}
NOISE = 0.2 * np.random.default_rng(1).normal(size=60)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fit():
    y = np.asarray(MODEL(X, TRUTH)) + NOISE
    y[7] = np.nan
    return jaxfit.fit(MODEL, X, y, sigma=0.2, absolute_sigma=True, nan_policy="omit")


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    center = random.uniform(3, 7, (4, 5, 1))
    y = 5 * np.exp(-(((X - center) / 0.8) ** 2) / 2) + 1
    y = y + 0.2 * random.normal(size=y.shape)
    y[2, 3] = np.nan
    return jaxfit.fit_batch(models.Gaussian() + models.Constant(), X, y)


def drawn(figure):
    """The figure, after it was rendered: what cannot be drawn fails here."""
    figure.canvas.draw()
    return figure


def line(axis, label):
    return next(one for one in axis.lines if one.get_label() == label).get_xydata()


def test_a_fit_shows_data_curve_band_parts_and_residuals(fit):
    main, lower = drawn(fit.plot(xlabel="time", ylabel="counts")).axes
    curve = line(main, "fit")
    np.testing.assert_allclose(curve[:, 1], fit.predict(curve[:, 0]), rtol=1e-12)
    assert (np.diff(curve[:, 0]) > 0).all()
    bars = main.containers[0]
    assert len(bars.lines[0].get_xdata()) == 59
    parts = [line(main, label)[:, 1] for label in fit.components()]
    np.testing.assert_allclose(np.sum(parts, axis=0), curve[:, 1], rtol=1e-10)
    band = main.collections[-1].get_paths()[0].vertices
    assert band[:, 1].min() < curve[:, 1].min()
    assert (main.get_ylabel(), lower.get_xlabel()) == ("counts", "time")
    left = lower.containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(
        np.sort(left), np.sort(fit.residuals[fit.observed.valid])
    )
    (alone,) = drawn(fit.plot(residuals=False, components=False)).axes
    assert len(alone.lines) == 2


def test_a_logarithmic_axis_has_its_own_fine_points(fit):
    main = drawn(fit.plot(xscale="log")).axes[0]
    curve = line(main, "fit")[:, 0]
    assert main.get_xscale() == "log"
    np.testing.assert_allclose(np.diff(np.log(curve)), np.log(curve[1] / curve[0]))
    with pytest.raises(ValueError, match="give 'linear', or 'log'"):
        fit.plot(xscale="symlog")


def test_an_image_shows_data_fit_and_residual():
    rows, columns = np.mgrid[0:9, 0:11] * 1.0
    spot = 50 * np.exp(-((columns - 5) ** 2 + (rows - 4) ** 2) / 3.4) + 10
    image = np.random.default_rng(0).poisson(spot)
    fit = jaxfit.fit(models.Gaussian2D() + models.Constant(), (columns, rows), image)
    panels = drawn(fit.plot()).axes[:3]
    assert [axis.get_title() for axis in panels] == ["data", "fit", "residual"]
    shown = [np.asarray(a.collections[0].get_array()).reshape(9, 11) for a in panels]
    np.testing.assert_array_equal(shown[0], image)
    np.testing.assert_allclose(shown[1] + shown[2], image, rtol=1e-12)
    drawn(fit.plot_residuals())


def test_residuals_in_order_and_against_normal_quantiles(fit):
    order, quantiles = drawn(fit.plot_residuals()).axes
    expected, found = quantiles.lines[-1].get_xydata().T
    assert (np.diff(found) >= 0).all()
    assert np.corrcoef(expected, found)[0, 1] > 0.97  # they are normal
    assert len(order.lines[-1].get_xdata()) == 59


def test_profiles_meet_their_intervals(fit):
    figure = drawn(fit.plot_profile(["center", "width"]))
    ends = fit.intervals("profile", SIGMAS[1])
    for axis, name in zip(figure.axes, ["center", "width"], strict=True):
        assert axis.get_xlabel() == name
        marks = [
            segment[0, 0] for c in axis.collections for segment in c.get_segments()
        ]
        for end in ends[name]:
            assert min(abs(np.array(marks) - end)) < 0.01 * fit.errors[name]


def test_a_contour_encloses_the_fit(fit):
    (axis,) = drawn(fit.plot_contour("center", "width")).axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("center", "width")
    outline = matplotlib.path.Path(axis.lines[0].get_xydata())
    assert outline.contains_point((fit["center"].value, fit["width"].value))
    own = plt.subplots()[1]
    assert fit.plot_contour("center", "width", 0.95, axes=own) is own.figure


def test_a_corner_has_a_panel_for_each_pair(fit):
    figure = drawn(fit.plot_corner(["height", "center", "width"], number=200))
    assert len(figure.axes) == 9
    assert sum(axis.axison for axis in figure.axes) == 6


def test_maps_of_parameters_and_of_the_status(batch):
    figure = drawn(batch.plot())
    shown = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert set(shown) == {*batch.names, "status"}
    image = shown["center"].images[0].get_array()
    np.testing.assert_allclose(image.filled(np.nan), batch["center"])
    drawn(batch.plot(["fwhm"], errors=True))
    labels = drawn(batch.plot_status()).axes[-1].get_yticklabels()
    assert "nonfinite_start" in [label.get_text() for label in labels]
    assert len(drawn(batch.plot_fits()).axes) == 9
    assert len(drawn(batch.plot_fits([(0, 1), (2, 3)])).axes) == 2


def test_curves_alone_are_drawn(batch):
    x, y = (X, 2 * X), np.ones((3, 60))
    both = jaxfit.fit_batch(lambda x, a: a * x[0] / x[1], x, y)
    with pytest.raises(ValueError, match="Only curves of one coordinate"):
        both.plot_fits()
    assert len(drawn(both.plot()).axes) == 2


def test_without_matplotlib_one_is_told_what_to_install(fit, batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (fit.plot, fit.plot_residuals, fit.plot_profile, batch.plot):
        with pytest.raises(ImportError, match=r'pip install "jaxfit-lsq\[plot\]"'):
            draw()
