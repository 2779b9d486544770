"""`fit` with a callback or a time limit: the same fit, seen step by step."""

import jax
import numpy as np
import pytest

import jaxfit
from jaxfit import losses, models

X = np.linspace(0, 10, 120)
MODEL = models.Gaussian()
Y = np.asarray(MODEL(X, {"height": 3.0, "center": 4.0, "width": 0.7}))
Y = Y + 0.1 * np.random.default_rng(0).normal(size=X.size)
START = {"p0": {"width": 2.0}}


EVERYTHING = {
    "loss": losses.Huber(2.0),
    "sigma": np.where(X < 1, np.inf, 0.1),
    "prior": {"width": (1.0, 0.1)},
    "bounds": {"height": (0, 2)},
    "tie": {"center": lambda p: 8 * p["width"]},
}


@pytest.mark.parametrize("settings", [{}, EVERYTHING])
def test_a_watched_fit_is_the_same_fit(settings):
    steps = []
    plain = jaxfit.fit(MODEL, X, Y, **START, **settings)
    watched = jaxfit.fit(
        MODEL, X, Y, **START, **settings, callback=steps.append, time_limit=1e3
    )
    for theirs, ours in zip(plain.numbers, watched.numbers, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7),
            theirs,
            ours,
        )
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    costs = [step.chi_square for step in steps]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(watched.chi_square)
    assert steps[-1].values == pytest.approx(watched.values)
    assert steps[0].nfev < steps[-1].nfev <= watched.nfev


def stop_by_exception(step):
    if step.number == 2:
        raise StopIteration


@pytest.mark.parametrize(
    ("settings", "words", "nfev"),
    [
        ({"callback": lambda step: step.number == 2}, "callback", range(3, 9)),
        ({"callback": stop_by_exception}, "callback", range(3, 9)),
        ({"time_limit": 1e-9}, "time limit of 1e-09 s was reached", [1, 2]),
    ],
)
def test_a_fit_that_is_stopped_says_where_it_stood(settings, words, nfev):
    with pytest.raises(jaxfit.FitError, match=words) as caught:
        jaxfit.fit(MODEL, X, Y, **START, **settings)
    fit = caught.value.fit
    assert fit.status == jaxfit.Status.STOPPED
    assert fit.nfev in nfev
    assert fit.chi_square == pytest.approx(np.sum(fit.residuals**2))
    assert "starts=64" not in str(caught.value)


def test_errors_of_a_callback_come_through():
    def broken(step):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jaxfit.fit(MODEL, X, Y, callback=broken)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"callback": 3}, TypeError, "callback is 3; expected a function"),
        ({"time_limit": 0}, ValueError, "time_limit is 0; give a positive"),
        ({"time_limit": "1 s"}, ValueError, "time_limit is '1 s'"),
        ({"callback": print, "starts": 8}, ValueError, "starts is 8; leave out"),
    ],
)
def test_what_cannot_be_watched_is_refused(settings, kind, words):
    with pytest.raises(kind, match=words):
        jaxfit.fit(MODEL, X, Y, **settings)
