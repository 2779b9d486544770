"""Complex y in `fit` and `fit_batch`: beside the fit of parts one after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import losses

M = 50
F = np.linspace(1, 10, M)
P0 = {"a": 1.0, "center": 4.0, "width": 1.0}


def resonance(f, a, center, width):
    return a / (center - f + 1j * width)


def in_parts(x, a, center, width):
    z = resonance(x[0], a, center, width)
    return jnp.where(x[1] == 0, z.real, z.imag)


RANDOM = np.random.default_rng(0)
Y = resonance(F, 2.0, 5.0, 0.7) + 0.05 * (RANDOM.normal(size=(M, 2)) @ [1, 1j])
SIGMA = RANDOM.uniform(0.03, 0.07, M)
BOTH = np.stack([np.tile(F, 2), np.repeat([0.0, 1.0], M)])


@pytest.fixture(autouse=True, scope="module")
def _complex_and_real_numbers_meet():
    with jax.numpy_dtype_promotion("standard"):
        yield


def stacked(y):
    return np.concatenate([y.real, y.imag])


@pytest.fixture(scope="module")
def fit():
    return jaxfit.fit(resonance, F, Y, p0=P0, sigma=SIGMA)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": losses.Huber(2.0), "prior": {"width": (0.6, 0.1)}},
        {"covariance": "sandwich", "fixed": ["a"]},
    ],
)
def test_parts_count_by_themselves(settings):
    settings = {"p0": P0} | settings
    ours = jaxfit.fit(resonance, F, Y, sigma=SIGMA, **settings)
    theirs = jaxfit.fit(in_parts, BOTH, stacked(Y), sigma=np.tile(SIGMA, 2), **settings)
    np.testing.assert_allclose(ours.numbers.x, theirs.numbers.x, rtol=1e-6)
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-4)
    ours, theirs = (
        dataclasses.replace(fit).goodness._replace(r_squared=0)
        for fit in (ours, theirs)
    )
    np.testing.assert_allclose(ours, theirs)
    assert ours.ndata == 2 * M


def test_what_a_user_sees_is_complex(fit):
    best = resonance(F, *fit.numbers.x)
    np.testing.assert_allclose(fit.best_fit, best)
    np.testing.assert_allclose(fit.predict(F[:5]), best[:5])
    np.testing.assert_allclose(fit.residuals, Y - best)
    ratio = (Y - best) / SIGMA / np.sqrt(fit.reduced_chi_square)
    np.testing.assert_allclose(fit.standardized_residuals, ratio)
    about = np.average(Y, weights=SIGMA**-2)
    total = np.sum(np.abs((Y - about) / SIGMA) ** 2)
    assert fit.r_squared == pytest.approx(1 - fit.chi_square / total)
    assert "y is complex" in str(fit)
    theirs = jaxfit.fit(in_parts, BOTH, stacked(Y), p0=P0, sigma=np.tile(SIGMA, 2))
    for kind in ("confidence_band", "prediction_band"):
        band, other = (getattr(one, kind)() for one in (fit, theirs))
        for mine, parts in zip(band, other, strict=True):
            np.testing.assert_allclose(stacked(mine), parts, rtol=1e-5, atol=1e-7)


def test_points_that_do_not_count():
    lost = np.isin(np.arange(M), [3, 7])
    y = np.where(lost, [np.nan + 1j, 1 + np.nan * 1j][0], Y)
    expected = jaxfit.fit(resonance, F[~lost], Y[~lost], p0=P0)
    for data in (y, np.ma.MaskedArray(Y, lost)):
        ours = jaxfit.fit(resonance, F, data, p0=P0, nan_policy="omit")
        np.testing.assert_allclose(ours.numbers.x, expected.numbers.x)
        assert ours.ndata == 2 * (M - 2)
        assert np.array_equal(np.isnan(ours.residuals), lost)


@pytest.mark.parametrize("resample", ["residual", "case", "parametric"])
def test_a_bootstrap_has_the_errors(fit, resample):
    errors = fit.bootstrap(500, resample).stderr
    for name in fit.varied:
        assert errors[name] == pytest.approx(fit.errors[name], rel=0.3)


def test_profiles_files_and_pictures(fit, tmp_path):
    np.testing.assert_allclose(
        fit.intervals("profile")["a"], fit.intervals()["a"], rtol=1e-3
    )
    fit.save(tmp_path / "fit.npz")
    again = jaxfit.Fit.load(tmp_path / "fit.npz", resonance)
    assert again.report() == fit.report()
    np.testing.assert_array_equal(again.predict(F[:5]), fit.predict(F[:5]))
    figure = again.plot()
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert {"data, real", "data, imaginary", "fit, real", "fit, imaginary"} <= {*texts}
    assert len(fit.plot_residuals().axes) == 2


def test_many_are_a_loop_of_single_ones():
    data = np.stack([Y, 1.1 * Y])
    data[1, 5] = np.nan
    batch = jaxfit.fit_batch(resonance, F, data, p0=P0, sigma=SIGMA)
    settings = {"p0": P0, "sigma": SIGMA, "nan_policy": "omit"}
    for k, y in enumerate(data):
        one = jaxfit.fit(resonance, F, y, **settings)
        for name in one.varied:
            assert batch[name][k] == pytest.approx(one.values[name], rel=1e-6)
            assert batch.errors[name][k] == pytest.approx(one.errors[name], rel=1e-4)
        again = batch.fit(k)
        assert batch.count[k] == one.ndata == again.ndata
        assert again.chi_square == pytest.approx(batch.chi_square[k])
    np.testing.assert_allclose(batch.predict()[0], batch.fit(0).best_fit, rtol=1e-6)
    assert len(batch.plot_fits().axes[0].lines) == 4


@pytest.mark.parametrize(
    ("y", "settings", "kind", "words"),
    [
        (Y.real, {}, TypeError, "has complex values, and y is real. Give complex y"),
        (Y, {"sigma": np.eye(M)}, ValueError, "is a matrix .* and y is complex"),
        (Y, {"sigma": Y}, ValueError, "sigma must be real"),
    ],
)
def test_what_does_not_go_together_is_refused(y, settings, kind, words):
    with pytest.raises(kind, match=words):
        jaxfit.fit(resonance, F, y, p0=P0, **settings)
