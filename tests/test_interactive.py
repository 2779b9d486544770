"""The panel of a fit in a notebook, by the state of its widgets."""

import concurrent.futures

import numpy as np
import pytest

import jaxfit
from jaxfit import models

pytest.importorskip("ipywidgets")
pytest.importorskip("matplotlib").use("Agg")

X = np.linspace(0, 10, 60)
NOISE = 0.1 * np.random.default_rng(0).normal(size=60)
Y = 5 * np.exp(-0.5 * ((X - 4) / 0.8) ** 2) + 1 + NOISE
MODEL = models.Gaussian() + models.Constant()


@pytest.fixture(scope="module")
def fit():
    return jaxfit.fit(MODEL, X, Y, bounds={"width": (0.1, 20.0)})


def test_it_begins_where_the_fit_did(fit):
    panel = fit.interactive()
    assert [*panel.sliders] == [*fit.varied]
    for name, slider in panel.sliders.items():
        assert slider.value == pytest.approx(fit[name].start)
        assert slider.min <= fit[name].value <= slider.max
        assert slider.min >= fit[name].lower
        assert panel.fit[name].value == pytest.approx(fit[name].value, rel=1e-8)


def test_the_fit_follows_a_slider(fit):
    """As from the same start by `fit`, at another minimum too, and back."""
    panel = fit.interactive()
    before = bytes(panel._picture.value)
    panel.move({"center": 9.5, "width": 0.3})
    assert panel.starts["center"] == 9.5
    ours = jaxfit.fit(MODEL, X, Y, bounds={"width": (0.1, 20.0)}, p0=panel.starts)
    assert panel.fit.chi_square == pytest.approx(ours.chi_square, rel=1e-8)
    assert panel.fit.chi_square > 2 * fit.chi_square  # the peak is missed
    assert bytes(panel._picture.value) != before
    assert bytes(panel._picture.value).startswith(b"\x89PNG")
    panel.sliders["center"].value = 4.2
    panel.sliders["width"].value = 1.0
    assert panel.fit["center"].value == pytest.approx(fit["center"].value, rel=1e-6)
    assert f"{panel.fit['center'].value:.2f}" in panel._words.value


def test_sliders_that_move_in_several_threads(fit):
    """As notebooks have it: what is shown at the end belongs to the sliders."""
    panel = fit.interactive()

    def drag(name):
        for value in np.linspace(0.8, 1.2, 4) * fit[name].value:
            panel.sliders[name].value = value

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(drag, ["height", "center", "width"]))
    alone = fit.interactive()
    alone.move(panel.starts)
    assert panel.fit.values == alone.fit.values
    assert bytes(panel._picture.value) == bytes(alone._picture.value)


def test_its_buttons(fit):
    panel = fit.interactive()
    take, back = panel.widget.children[0].children[-2].children
    take.click()
    for name in fit.varied:
        assert panel.starts[name] == pytest.approx(fit[name].value, rel=1e-5)
    back.click()
    for name in fit.varied:
        assert panel.starts[name] == pytest.approx(fit[name].start)


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ({"middle": 1.0}, "no slider for 'middle'; there are height, center, width"),
        ({"c": 1.0}, "no slider for 'c'"),  # fixed: not ignored
        ({"width": -1.0}, r"width = -1 is outside its bounds \(0.1, 20.0\)"),
    ],
)
def test_what_cannot_move(starts, words):
    fit = jaxfit.fit(MODEL, X, Y, bounds={"width": (0.1, 20.0)}, fixed={"c": 1.0})
    panel = fit.interactive()
    with pytest.raises(ValueError, match=words):
        panel.move(starts)
    assert panel.starts["width"] == pytest.approx(fit["width"].start)


def test_a_fit_that_failed_has_a_panel():
    """From a start where the model is not finite to one where it is."""

    def power(x, a, b):
        return a * np.sqrt(x - b)

    x = np.linspace(1, 4, 60)
    with pytest.raises(jaxfit.FitError) as caught:
        jaxfit.fit(power, x, 2 * np.sqrt(x - 0.5), p0=[1.0, 2.0])
    panel = caught.value.fit.interactive()
    assert not panel.fit.success
    panel.move({"b": 0.0})
    assert panel.fit.success
    assert panel.fit["b"].value == pytest.approx(0.5, rel=1e-6)


def test_it_asks_for_what_it_needs(fit, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"jaxfit-lsq\[notebook\]"):
        fit.interactive()
