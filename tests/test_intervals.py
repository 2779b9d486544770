"""Intervals: Wald's, by profile likelihood beside lmfit and an independent refit, and
by three kinds of bootstrap; regions of two parameters."""

import jax.numpy as jnp
import lmfit
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from beside_lmfit import PAIRS

import jaxfit
from jaxfit import models

LEVELS = (0.68, 0.95)
X = np.linspace(0, 10, 60)


def noise(size=X.size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def refitted(pair, fit, held):
    """SciPy's chi-square with some parameters held at given values."""
    others = [name for name in fit.varied if name not in held]
    size = np.array([fit.errors[name] for name in others])
    best = np.array([fit.values[name] for name in others])
    function, sigma = pair.written(np), 1.0 if pair.sigma is None else pair.sigma

    def residuals(z):
        values = dict(zip(others, best + z * size, strict=True))
        return (function(pair.x, **held, **values) - pair.y) / sigma

    if not others:
        return np.sum(residuals(np.zeros(0)) ** 2)
    tight = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
    ends = [
        scipy.optimize.least_squares(residuals, z * np.ones(len(others)), **tight)
        for z in (-1.0, 0.1, 1.0)
    ]
    return 2 * min(end.cost for end in ends)


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair.name)
def pair_fit(request):
    return request.param, request.param.ours()


@pytest.fixture(scope="module")
def line():
    """A linear model with known errors, for which all intervals agree."""
    y = 2 * X + 1 + 0.5 * noise()
    return jaxfit.fit(models.Linear(), X, y, sigma=0.5, absolute_sigma=True)


# Wald


def test_wald_intervals_are_students(pair_fit):
    _, fit = pair_fit
    wald = fit.intervals(level=LEVELS)
    for k, name in enumerate(fit.varied):
        for level in LEVELS:
            reach = scipy.stats.t.ppf(0.5 + level / 2, fit.dof) * fit.errors[name]
            low, high = wald[name][level]
            np.testing.assert_allclose(
                [wald.values[k] - low, high - low], [reach, 2 * reach]
            )


def test_of_a_known_sigma_they_are_normal_and_derived_ones_are_there():
    model = models.Gaussian()
    y = np.asarray(model(X, height=5.0, center=4.0, width=1.0)) + 0.1 * noise()
    fit = jaxfit.fit(model, X, y, sigma=0.1, absolute_sigma=True, fixed={"center": 4.0})
    wald = fit.intervals()
    low, high = wald["width"]
    np.testing.assert_allclose(high - low, 2 * 1.959963984540054 * fit.errors["width"])
    assert wald["center"] == (4.0, 4.0)
    factor = 2 * np.sqrt(2 * np.log(2))
    np.testing.assert_allclose(wald["fwhm"], (low * factor, high * factor))
    assert "95 %" in str(wald)
    assert "fwhm" in str(wald)


# Profile


def test_profile_intervals_are_lmfits(pair_fit, monkeypatch):
    """lmfit looks for ends to 0.5e-4 of the value, too coarse for a center at 451."""

    def to_the_last_digit(*arguments, **settings):
        return scipy.optimize.root_scalar(*arguments, **settings | {"rtol": 1e-12})

    monkeypatch.setattr(lmfit.confidence, "root_scalar", to_the_last_digit)
    pair, fit = pair_fit
    ours = fit.intervals("profile", LEVELS)
    theirs = pair.theirs_exactly().conf_interval(sigmas=LEVELS)
    for name in fit.varied:
        ends = {round(100 * p, 3): [] for p in LEVELS}
        for probability, value in theirs[name]:
            if probability:
                ends[round(100 * probability, 3)].append(value)
        for level in LEVELS:
            np.testing.assert_allclose(
                ours[name][level],
                ends[100 * level],
                rtol=0,
                atol=1e-3 * fit.errors[name],
            )


def test_profile_intervals_end_where_chi_square_has_risen(pair_fit):
    pair, fit = pair_fit
    found = fit.intervals("profile", 0.95)
    target = scipy.stats.t.ppf(0.975, fit.dof) ** 2
    for name in fit.varied:
        for end in found[name]:
            rise = refitted(pair, fit, {name: end}) - fit.chi_square
            np.testing.assert_allclose(rise / fit.reduced_chi_square, target, rtol=1e-5)


def test_for_a_linear_model_profile_and_wald_agree(line):
    wald, found = line.intervals("wald", LEVELS), line.intervals("profile", LEVELS)
    np.testing.assert_allclose(found.lower, wald.lower[:2], rtol=1e-6)
    np.testing.assert_allclose(found.upper, wald.upper[:2], rtol=1e-6)


def test_a_bound_ends_a_profile_interval():
    y = 3 * np.exp(-0.4 * X) + 0.05 * noise(seed=3)
    model = models.Exponential() + models.Constant()
    free = jaxfit.fit(model, X, y, sigma=0.05)
    low = free.intervals("profile")["c"][0]
    assert low < free.values["c"] - free.errors["c"]
    limit = free.values["c"] - free.errors["c"]
    bounded = jaxfit.fit(model, X, y, sigma=0.05, bounds={"c": (limit, None)})
    assert bounded.intervals("profile")["c"][0] == limit


def test_an_end_that_the_data_do_not_give_is_infinite():
    x = np.linspace(0.001, 0.03, 30)
    y = 10 * x / (1 + x) + 0.006 * noise(30, seed=2)
    fit = jaxfit.fit(models.MichaelisMenten(), x, y, p0=[10, 1])
    low, high = fit.intervals("profile", 0.95)["constant"]
    assert 0 < low < fit.values["constant"]
    assert high == np.inf
    # An endless constant makes a line through the origin, which does fit well enough.
    line = np.sum((y - x * (x @ y) / (x @ x)) ** 2)
    quantile = scipy.stats.t.ppf(0.975, fit.dof)
    assert line - fit.chi_square < quantile**2 * fit.reduced_chi_square


def test_what_is_undetermined_has_no_ends():
    def twice(x, a, b, c):
        return (a + b) * x + c

    fit = jaxfit.fit(twice, X, 3 * X + noise())
    found = fit.intervals("profile")
    assert found["a"] == found["b"] == (-np.inf, np.inf)
    np.testing.assert_allclose(found["c"], fit.intervals()["c"], rtol=1e-6)


def test_the_profile_of_a_linear_model_is_a_line(line):
    for one in line.profile():
        distance = (one.values - line.values[one.name]) / line.errors[one.name]
        np.testing.assert_allclose(one.zeta, distance, atol=1e-5)
        np.testing.assert_allclose(one.x[:, line.varied.index(one.name)], one.values)
    assert [one.name for one in line.profile("slope")] == ["slope"]


# Regions of two parameters


def test_contours_are_where_chi_square_has_risen():
    pair = PAIRS[-1]
    fit = pair.ours()
    found = fit.contour("amplitude", "rate", level=LEVELS, points=12)
    assert found.points.shape == (2, 12, 2)
    for level, points in zip(LEVELS, found.points, strict=True):
        target = 2 * scipy.stats.f.ppf(level, 2, fit.dof)
        for amplitude, rate in points:
            chi_square = refitted(pair, fit, {"amplitude": amplitude, "rate": rate})
            rise = (chi_square - fit.chi_square) / fit.reduced_chi_square
            np.testing.assert_allclose(rise, target, rtol=1e-5)


def test_contours_of_a_linear_model_are_ellipses(line):
    (points,) = line.contour("slope", "intercept", level=0.95).points
    away = points - line.numbers.x
    size = np.einsum("ki,ij,kj->k", away, np.linalg.inv(line.covariance), away)
    np.testing.assert_allclose(size, scipy.stats.chi2.ppf(0.95, 2), rtol=1e-5)


# Bootstrap


@pytest.mark.parametrize("kind", ["residual", "case", "parametric"])
def test_for_a_linear_model_bootstraps_scatter_as_the_errors_say(line, kind):
    samples = line.bootstrap(2000, kind)
    assert samples.values.shape == (2000, 3)  # the zero is derived
    assert (samples.status > 0).all()
    for name in line.varied:
        np.testing.assert_allclose(samples.stderr[name], line.errors[name], rtol=0.25)
        np.testing.assert_allclose(
            samples[name].mean(), line.values[name], atol=0.2 * line.errors[name]
        )
    again = line.bootstrap(2000, kind)
    np.testing.assert_array_equal(again.values, samples.values)
    other = line.bootstrap(2000, kind, seed=1)
    assert (other.values != samples.values).any()


def test_a_parametric_bootstrap_knows_sigma_exactly(line):
    samples = line.bootstrap(20000, "parametric")
    np.testing.assert_allclose(
        np.cov(samples.values[:, :2].T), line.covariance, rtol=0.05
    )


def test_intervals_of_a_bootstrap_are_percentiles(line):
    samples = line.bootstrap(2000, "case", seed=2)
    found = line.intervals("bootstrap", number=2000, resample="case", seed=2)
    np.testing.assert_allclose(
        found["slope"], np.quantile(samples["slope"], [0.025, 0.975])
    )


def test_where_errors_differ_cases_scatter_as_the_sandwich_says():
    generator = np.random.default_rng(5)
    x = np.linspace(0, 1, 400)
    y = 2 * x + 1 + 2 * x**2 * generator.normal(size=x.size)
    plain = jaxfit.fit(models.Linear(), x, y)
    robust = jaxfit.fit(models.Linear(), x, y, covariance="sandwich")
    samples = plain.bootstrap(4000, "case")
    for name in plain.varied:
        np.testing.assert_allclose(samples.stderr[name], robust.errors[name], rtol=0.1)
    assert plain.errors["intercept"] > 1.5 * robust.errors["intercept"]

    # White's covariance with the factor m / (m - n), written out
    columns = np.stack([x, np.ones_like(x)], axis=1)
    bread = np.linalg.inv(columns.T @ columns)
    meat = columns.T @ (robust.residuals[:, None] ** 2 * columns)
    expected = bread @ meat @ bread * x.size / (x.size - 2)
    np.testing.assert_allclose(robust.covariance, expected, rtol=1e-9)


def test_points_that_are_left_out_are_not_drawn():
    y = 2 * X + 1 + 0.1 * noise()
    y[::4] = np.nan
    spoiled = np.where(np.isnan(y), 1e6, y)
    sigma = np.where(np.isnan(y), np.inf, 0.1)
    omitted = jaxfit.fit(models.Linear(), X, y, nan_policy="omit", sigma=0.1)
    left_out = jaxfit.fit(models.Linear(), X, spoiled, sigma=sigma)
    for kind in ("residual", "case"):
        first, second = (f.bootstrap(50, kind) for f in (omitted, left_out))
        np.testing.assert_allclose(first.values, second.values, rtol=1e-8)
        assert abs(first["slope"] - 2).max() < 0.1


# What cannot be


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda f: f.intervals("wld"), ValueError, "'wld'; give one of wald"),
        (lambda f: f.intervals(level=95), ValueError, "between 0 and 1"),
        (lambda f: f.intervals("profile", number=3), TypeError, "no settings"),
        (lambda f: f.intervals()["slpe"], KeyError, "there are slope, intercept"),
        (lambda f: f.profile("slpe"), ValueError, "these did: slope, intercept"),
        (lambda f: f.contour("slope", "slope"), ValueError, "give two parameters"),
        (lambda f: f.bootstrap(1), ValueError, "at least 2"),
        (lambda f: f.bootstrap(10, "jack"), ValueError, "residual, case, parametric"),
    ],
)
def test_wrong_questions_are_explained(line, call, kind, words):
    with pytest.raises(kind) as error:
        call(line)
    assert words in str(error.value)


def test_a_prior_has_no_bootstrap():
    fit = jaxfit.fit(models.Linear(), X, 2 * X + noise(), prior={"slope": (2.0, 1.0)})
    with pytest.raises(ValueError, match="profile likelihood"):
        fit.bootstrap()


def test_two_parameters_that_are_undetermined_have_no_region():
    fit = jaxfit.fit(lambda x, a, b: (a + b) * jnp.exp(x - 10), X, np.exp(X - 10))
    with pytest.raises(ValueError, match="no region is closed"):
        fit.contour("a", "b")
