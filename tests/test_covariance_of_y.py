"""`fit` with the covariance matrix of y as sigma."""

import numpy as np
import pytest
import scipy.optimize

import jaxfit
from jaxfit import models

M = 40
X = np.linspace(0, 10, M)
MODEL = models.Gaussian() + models.Constant()
COVARIANCE = 0.04 * np.exp(-np.abs(X[:, None] - X) / 2) + 0.0025 * np.eye(M)
NOISE = np.random.default_rng(0).multivariate_normal(np.zeros(M), COVARIANCE)
TRUTH = {"height": 3.0, "center": 4.0, "width": 0.7, "c": 1.0}
Y = np.asarray(MODEL(X, TRUTH)) + NOISE


def plain(x, height, center, width, c):
    return height * np.exp(-0.5 * ((x - center) / width) ** 2) + c


@pytest.fixture(scope="module")
def fit():
    return jaxfit.fit(MODEL, X, Y, sigma=COVARIANCE)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_numbers_are_scipys(absolute):
    ours = jaxfit.fit(MODEL, X, Y, sigma=COVARIANCE, absolute_sigma=absolute)
    x, covariance = scipy.optimize.curve_fit(
        plain, X, Y, list(TRUTH.values()), COVARIANCE, absolute, xtol=1e-12
    )
    np.testing.assert_allclose(ours.numbers.x, x, rtol=1e-5)
    np.testing.assert_allclose(ours.covariance, covariance, rtol=1e-3, atol=1e-6)


def test_what_a_reader_sees_is_in_units_of_y_and_chi_square_is_whitened(fit):
    residual = Y - plain(X, *fit.numbers.x)
    np.testing.assert_allclose(fit.residuals, residual, atol=1e-9)
    whitened = np.linalg.solve(np.linalg.cholesky(COVARIANCE), residual)
    np.testing.assert_allclose(fit.chi_square, whitened @ whitened)
    scale = np.sqrt(fit.reduced_chi_square)
    np.testing.assert_allclose(
        fit.standardized_residuals, whitened / scale, rtol=1e-6, atol=1e-7
    )
    assert "Covariance of y given." in fit.report()
    assert "Covariance of y given." in str(fit)
    errors = scale * np.sqrt(COVARIANCE.diagonal())
    np.testing.assert_allclose(
        fit.prediction_band().stderr, np.hypot(fit.confidence_band().stderr, errors)
    )


def test_a_diagonal_covariance_is_standard_errors():
    errors = np.sqrt(np.linspace(0.01, 0.09, M))
    one, other = (
        jaxfit.fit(MODEL, X, Y, sigma=sigma) for sigma in (np.diag(errors**2), errors)
    )
    np.testing.assert_allclose(one.goodness, other.goodness)
    np.testing.assert_allclose(one.numbers.errors, other.numbers.errors, rtol=1e-6)


def test_points_that_are_left_out_are_dropped_with_rows_and_columns():
    lost = np.isin(np.arange(M), [3, 20])
    kept = ~lost
    expected = jaxfit.fit(MODEL, X[kept], Y[kept], sigma=COVARIANCE[kept][:, kept])
    mask = lost[:, None] | lost
    for y, sigma in [
        (np.where(lost, np.nan, Y), COVARIANCE),
        (np.ma.MaskedArray(Y, lost), COVARIANCE),
        (Y, np.ma.MaskedArray(COVARIANCE, mask)),
    ]:
        ours = jaxfit.fit(MODEL, X, y, sigma=sigma, nan_policy="omit")
        assert ours.values == expected.values
        assert ours.residuals.shape == (M - 2,)


@pytest.mark.parametrize("resample", ["residual", "parametric"])
def test_a_bootstrap_keeps_the_covariance(fit, resample):
    errors = fit.bootstrap(600, resample).stderr
    for name in fit.varied:
        assert errors[name] == pytest.approx(fit.errors[name], rel=0.15)


def test_profiles_and_files(fit, tmp_path):
    wald, profile = (fit.intervals(kind) for kind in ("wald", "profile"))
    for name in ("height", "c"):  # the model is linear in these
        np.testing.assert_allclose(profile[name], wald[name], rtol=0.01)
    fit.save(tmp_path / "fit.npz")
    again = jaxfit.Fit.load(tmp_path / "fit.npz")
    assert again.report() == fit.report()
    assert again.bootstrap(10).stderr == fit.bootstrap(10).stderr


@pytest.mark.parametrize(
    ("sigma", "y", "words"),
    [
        (-COVARIANCE, Y, "positive definite"),
        (COVARIANCE[:5], Y, r"shape \(5, 40\)"),
        (COVARIANCE + np.triu(np.ones((M, M))), Y, "not symmetric"),
        (COVARIANCE, Y.reshape(4, 10), r"does not broadcast .* y of shape \(m,\)"),
        (np.where(np.eye(M) > 0, np.inf, 0), Y, "finite"),
    ],
)
def test_what_is_no_covariance_is_refused(sigma, y, words):
    with pytest.raises(ValueError, match=words):
        jaxfit.fit(MODEL, X.reshape(y.shape), y, sigma=sigma)


def test_what_a_covariance_does_not_go_with_is_refused(fit):
    with pytest.raises(ValueError, match="'case' draws points by themselves"):
        fit.bootstrap(10, "case")
    with pytest.raises(ValueError, match="is for `fit`"):
        jaxfit.fit_batch(MODEL, X, np.stack([Y, Y]), sigma=COVARIANCE)
