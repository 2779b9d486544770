"""Draws of parameters: moments, bounds, ties; of one fit, of many, of shared ones."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import models
from jaxfit.fitting.inference._draws import factor_of

X = np.linspace(0.0, 8.0, 41)
NOISE = 0.1 * np.cos(np.arange(41.0) ** 2)
Y = 2 * np.exp(-0.5 * ((X - 4) / 0.8) ** 2) + 0.5 + NOISE
PEAK = models.Gaussian() + models.Constant()
NUMBER = 20_000


def test_moments_are_estimate_and_covariance():
    fit = jaxfit.fit(PEAK, X, Y)
    draws = fit.draws(NUMBER)
    assert [*draws] == [*fit.params, *fit.derived]
    samples = np.stack([draws[name] for name in fit.varied])
    errors = np.array([*fit.errors.values()])
    off = (samples.mean(axis=1) - fit.numbers.x) / errors
    assert np.abs(off).max() < 4 / np.sqrt(NUMBER)
    np.testing.assert_allclose(np.corrcoef(samples), fit.correlation, atol=0.03)
    np.testing.assert_allclose(samples.std(axis=1), errors, rtol=0.02)
    area = draws["height"] * draws["width"] * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(draws["area"], area)
    np.testing.assert_allclose(area.std(), fit["area"].stderr, rtol=0.03)


def test_seeds():
    fit = jaxfit.fit(PEAK, X, Y)
    one, same, other = fit.draws(5), fit.draws(5, seed=0), fit.draws(5, seed=1)
    assert (one["width"] == same["width"]).all()
    assert (one["width"] != other["width"]).all()


def test_ties_and_fixed_parameters_follow():
    fit = jaxfit.fit(
        PEAK, X, Y, tie={"c": lambda p: p["height"] / 4}, fixed={"center": 4.0}
    )
    draws = fit.draws(NUMBER)
    np.testing.assert_allclose(draws["c"], draws["height"] / 4)
    assert (draws["center"] == 4.0).all()
    assert draws["center"].shape == (NUMBER,)
    np.testing.assert_allclose(draws["c"].std(), fit.errors["c"], rtol=0.02)


def test_bounds_hold():
    fit = jaxfit.fit(PEAK, X, Y, bounds={"c": (0.55, None)})
    assert fit.params["c"].at_bound == -1
    c = fit.draws(NUMBER)["c"]
    assert c.min() >= 0.55
    # half a normal distribution, whose mean is known
    mean = fit.values["c"] + fit.errors["c"] * np.sqrt(2 / np.pi)
    np.testing.assert_allclose(c.mean() - 0.55, mean - 0.55, rtol=0.03)


def test_the_models_bounds_hold_for_what_is_tied():
    error = 0.3
    y = np.broadcast_to(0.2, 9) + error * np.array([1.0, -1] * 4 + [0])

    class Width(models.Model):
        limits = {"width": (0.0, np.inf)}

        def function(self, x, c, width):
            return c + 0 * width * x

    fit = jaxfit.fit(Width(), X[:9], y, tie={"width": lambda p: p["c"]})
    draws = fit.draws(2000)
    assert draws["width"].min() >= 0
    assert fit.values["c"] - 3 * fit.errors["c"] < 0


def test_far_from_zero():
    line = models.Linear()
    fit = jaxfit.fit(line, X + 1e6, Y, sigma=0.1)
    assert fit.problem.origin is not None
    draws = fit.draws(NUMBER)
    at = draws["slope"] * (1e6 + 4) + draws["intercept"]
    band = fit.confidence_band(np.array([1e6 + 4]))
    np.testing.assert_allclose(at.mean(), band.value[0], atol=0.05 * band.stderr[0])
    np.testing.assert_allclose(at.std(), band.stderr[0], rtol=0.02)


def test_a_batch_is_each_fit():
    y = np.stack([[Y, Y[::-1]], [2 * Y, Y + np.roll(NOISE, 3)]])
    y[1, 0] = np.nan
    fits = jaxfit.fit_batch(PEAK, X, y, bounds={"c": (0.45, None)})
    draws = fits.draws(NUMBER)
    for name, values in draws.items():
        assert values.shape == (2, 2, NUMBER)
        assert np.isnan(values[1, 0]).all()
        assert name in fits.values | fits.derived
    assert np.nanmin(draws["c"]) >= 0.45
    for name in ("height", "center", "width"):
        good = fits.success
        np.testing.assert_allclose(
            draws[name].std(axis=-1)[good], fits.errors[name][good], rtol=0.05
        )


def test_what_is_shared_is_drawn_once():
    t = np.linspace(0.0, 4.0, 15)
    y = np.stack([a * np.exp(-0.8 * t) for a in (2.0, 3.0, 1.5)])
    y = y + 0.05 * np.cos(7 * t + np.arange(3.0)[:, None])

    def decay(x, amplitude, rate):
        return amplitude * jnp.exp(-rate * x)

    fits = jaxfit.fit_batch(decay, t, y, shared="rate")
    draws = fits.draws(NUMBER)
    assert draws["rate"].shape == (NUMBER,)
    assert draws["amplitude"].shape == (3, NUMBER)
    np.testing.assert_allclose(draws["rate"].std(), fits.errors["rate"], rtol=0.02)
    np.testing.assert_allclose(
        draws["amplitude"].std(axis=1), fits.errors["amplitude"], rtol=0.02
    )
    for k in range(3):
        expected = fits.fit(k).correlations["amplitude", "rate"]
        found = np.corrcoef(draws["amplitude"][k], draws["rate"])[0, 1]
        np.testing.assert_allclose(found, expected, atol=0.02)
    # amplitudes are alike only by the rate
    a = fits.fit(0).correlations["amplitude", "rate"]
    b = fits.fit(1).correlations["amplitude", "rate"]
    found = np.corrcoef(draws["amplitude"][:2])[0, 1]
    np.testing.assert_allclose(found, a * b, atol=0.03)


def test_factors_also_of_what_is_singular():
    random = np.random.default_rng(3)
    root = random.standard_normal((5, 3, 2)) * np.array([1.0, 1e-9])
    singular = root @ root.transpose(0, 2, 1)
    factor = factor_of(singular)
    np.testing.assert_allclose(factor @ factor.transpose(0, 2, 1), singular, atol=1e-13)
    nothing = factor_of(np.full((1, 2, 2), np.inf))
    assert not np.isfinite(nothing).any(where=np.tri(2, dtype=bool))


def test_errors_in_words():
    line = models.Linear()
    with pytest.raises(ValueError, match="slope and intercept have no finite error"):
        jaxfit.fit(line, X[:2], Y[:2]).draws(10)
    fit = jaxfit.fit(line, X, Y)
    with pytest.raises(ValueError, match="number is 0; give how many"):
        fit.draws(0)
    bounds = {"slope": (-1.0, -1.0 + 1e-6)}
    with pytest.raises(ValueError, match="less than 1% lie within the bounds"):
        jaxfit.fit(line, X, Y, bounds=bounds).draws(10)
