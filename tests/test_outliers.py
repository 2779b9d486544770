"""Outliers: the level for normal errors, and residuals studentised by deletion."""

import numpy as np
import pytest
import scipy.stats

import jaxfit
from jaxfit import losses, models

X = np.linspace(-1.0, 1.0, 20)
LINE = models.Linear()
RANDOM = np.random.default_rng(7)
NOISE = RANDOM.standard_normal((4000, 20))
Y = 1 + 2 * X + 0.1 * NOISE[0]


def with_outliers(y, *places, by=1.5):
    y = y.copy()
    y[list(places)] += by
    return y


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("level", [0.01, 0.1])
def test_a_mask_of_normal_errors_is_empty_but_for_its_level(level, absolute):
    fits = jaxfit.fit_batch(
        LINE, X, 1 + 2 * X + 0.1 * NOISE, sigma=0.1, absolute_sigma=absolute
    )
    share = fits.outliers(level).any(axis=1).mean()
    assert abs(share - level) < 4 * np.sqrt(level / len(NOISE))


def deleted(y, sigma, k):
    """The residual of a point beside the line through the others, over its error."""
    rest = np.delete(np.arange(len(y)), k)
    columns = np.stack([X, np.ones_like(X)], axis=1) / sigma[:, None]
    gram = columns[rest].T @ columns[rest]
    x = np.linalg.solve(gram, columns[rest].T @ (y[rest] / sigma[rest]))
    left = y[rest] / sigma[rest] - columns[rest] @ x
    row = columns[k]
    off = y[k] / sigma[k] - row @ x
    variance = left @ left / (len(rest) - 2)
    return off / np.sqrt(variance * (1 + row @ np.linalg.solve(gram, row)))


def test_it_is_students_test_of_the_point_beside_the_line_through_the_others():
    """Without outliers far out it is that of deleting points, which NumPy does."""
    sigma = 0.1 * (1 + 0.5 * np.cos(X))
    for by in (0.3, 0.35, 0.4, 0.45, 0.5):
        y = with_outliers(Y, 13, by=by)
        t = np.array([deleted(y, sigma, k) for k in range(20)])
        fit = jaxfit.fit(LINE, X, y, sigma=sigma)
        is_far_out = np.abs(t) > 3.3  # for which the scale is corrected
        if not is_far_out.any():
            tail = 2 * scipy.stats.t.sf(np.abs(t).max(), 17)
            level = 1 - (1 - tail) ** 20
            assert fit.outliers(min(1.05 * level, 0.99)).sum() == 1
            assert not fit.outliers(0.95 * level).any()


def test_several_beside_each_other_are_found():
    y = with_outliers(Y, 3, 4, 12)
    expected = np.isin(np.arange(20), [3, 4, 12])
    two = with_outliers(Y, 4, 15)
    assert jaxfit.fit(LINE, X, two).outliers().nonzero()[0].tolist() == [4, 15]
    for settings in ({"loss": losses.Tukey(0.5)}, {"loss": losses.Cauchy(0.1)}):
        mask = jaxfit.fit(LINE, X, y, **settings).outliers()
        assert mask.dtype == bool
        assert mask.tolist() == expected.tolist()
    clean = jaxfit.fit(LINE, X, np.ma.array(y, mask=mask))
    assert not clean.outliers(0.5)[mask].any()
    assert clean.ndata == 17


def test_known_errors_are_taken_as_they_are():
    y = with_outliers(Y, 5, by=0.6)
    assert jaxfit.fit(LINE, X, y, sigma=0.1, absolute_sigma=True).outliers()[5]
    assert not jaxfit.fit(LINE, X, y, sigma=0.3, absolute_sigma=True).outliers().any()


def test_a_batch_is_each_fit():
    y = np.stack([with_outliers(Y, 4), Y, with_outliers(Y, 0, 9)])
    y[0, 7] = np.nan
    y = np.stack([y, y[::-1]])
    sigma = np.where(np.arange(20) == 11, np.inf, 0.1)
    for settings in ({}, {"loss": losses.Cauchy(2.0)}, {"absolute_sigma": True}):
        fits = jaxfit.fit_batch(LINE, X, y, sigma=sigma, **settings)
        masks = fits.outliers(0.05)
        assert masks.shape == y.shape
        assert not masks[:, :, 11].any()
        assert masks[0, 0].nonzero()[0].tolist() == [4]
        for k in np.ndindex(2, 3):
            assert masks[k].tolist() == fits.fit(k).outliers(0.05).tolist()


def test_shared_parameters():
    y = np.stack([Y, with_outliers(Y, 4), Y[::-1]])
    fits = jaxfit.fit_batch(LINE, X, y, shared="intercept")
    masks = fits.outliers()
    assert masks.any(axis=1).tolist() == [False, True, False]
    for k in range(3):
        assert masks[k].tolist() == fits.fit(k).outliers().tolist()


def test_complex_several_and_errors_in_x():
    z = with_outliers(Y + 1j * (2 * X + 0.1 * NOISE[1]), 6, by=2j)

    def line(x, a, b):
        return a + b * x + 1j * (b * x)

    mask = jaxfit.fit(line, X, z).outliers()
    assert mask.nonzero()[0].tolist() == [6]
    both = jaxfit.fit(LINE, [X, X[:15]], [Y, with_outliers(Y, 2)[:15]], local="slope")
    masks = both.outliers()
    assert [m.nonzero()[0].tolist() for m in masks] == [[], [2]]
    y = with_outliers(Y, 8)
    odr = jaxfit.fit(LINE, X, y, sigma=0.1, sigma_x=0.05)
    assert odr.outliers().nonzero()[0].tolist() == [8]
    with pytest.raises(ValueError, match=r"Ask one of them: fits.fit\(index\)"):
        jaxfit.fit_batch(LINE, X, y[None], sigma=0.1, sigma_x=0.05).outliers()


def test_of_points_with_a_covariance_each_is_beside_the_others():
    """A jump within correlated errors is far from its neighbours, not from the line."""
    distance = np.abs(X[:, None] - X)
    covariance = 0.04 * np.exp(-distance / 0.5) + 1e-4 * np.eye(20)
    y = 1 + 2 * X + np.linalg.cholesky(covariance) @ NOISE[0]
    settings = {"sigma": covariance, "absolute_sigma": True}
    assert not jaxfit.fit(LINE, X, y, **settings).outliers().any()
    jump = with_outliers(y, 10, by=0.5)
    assert jaxfit.fit(LINE, X, jump, **settings).outliers().nonzero()[0] == [10]
    # the residual of each from what the others predict, all at once (Kriging)
    columns = np.stack([X, np.ones_like(X)], axis=1)
    inverse = np.linalg.inv(covariance)
    gram = columns.T @ inverse @ columns
    rest = inverse - inverse @ columns @ np.linalg.solve(gram, columns.T @ inverse)
    ratio = np.abs(rest @ jump) / np.sqrt(np.diag(rest))
    tail = 2 * scipy.stats.norm.sf(ratio.max())
    level = 1 - (1 - tail) ** 20
    fit = jaxfit.fit(LINE, X, jump, **settings)
    assert fit.outliers(1.001 * level).any()
    assert not fit.outliers(0.999 * level).any()


def test_a_curve_without_noise_has_none():
    assert not jaxfit.fit(LINE, X, 1 + 2 * X).outliers(0.5).any()
    one = jaxfit.fit(LINE, X, with_outliers(1 + 2 * X, 7), loss=losses.Tukey(0.2))
    assert one.outliers().nonzero()[0].tolist() == [7]


def test_errors_in_words():
    fit = jaxfit.fit(LINE, X, Y)
    with pytest.raises(ValueError, match="level is 2; give a probability"):
        fit.outliers(2)
    with pytest.raises(ValueError, match="No degree of freedom is left: the curve"):
        jaxfit.fit(LINE, X[:2], Y[:2]).outliers()
