"""`fit` and `fit_batch` with likelihoods: SciPy's densities, NumPy's formulas."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from likelihood_problems import PROBLEMS, SIGMA
from numpy.testing import assert_allclose, assert_array_equal

import jaxfit
from jaxfit import fit, fit_batch, losses, models, solve

NAMES = "abcde"
CHOSEN = ["lifetime", "camera", "doses", "intensities", "magnitudes", "tails"]
T = np.linspace(0, 6, 64)
POISSON = losses.Poisson()
START = {"a": 3.0, "k": 2.0, "b": 0.5}
BOUNDS = {"a": (0, None), "k": (0.1, None), "b": (0, None)}
SETTINGS = {"p0": START, "bounds": BOUNDS, "loss": POISSON}


def decay(t, a, k, b):
    return a * jnp.exp(-t / k) + b


def expected(a=6.0, k=1.2, b=1.0):
    return a * np.exp(-T / k) + b


def drawn(seed=0, number=None, **truth):
    size = T.shape if number is None else (number, *T.shape)
    return np.random.default_rng(seed).poisson(expected(**truth), size).astype(float)


COUNTS = drawn()


@pytest.fixture(scope="module")
def counted():
    """A decay of few counts."""
    return fit(decay, T, COUNTS, **SETTINGS)


def model_of(problem):
    """The model of a problem with named parameters."""
    number = len(problem.x0)
    source = f"lambda t, {', '.join(NAMES[:number])}: "
    source += f"mean(jnp, [{', '.join(NAMES[:number])}], t)"
    return eval(source, {"mean": problem.mean, "jnp": jnp})


def fitted(name, **settings):
    problem = PROBLEMS[name]
    if problem.bounds is not None:
        pairs = zip(*problem.box, strict=True)
        settings["bounds"] = dict(zip(NAMES, pairs, strict=False))
    settings = {"p0": problem.x0, "loss": problem.likelihood} | settings
    return fit(model_of(problem), problem.t, problem.observed, **settings)


@pytest.fixture(scope="module")
def fits():
    """A fit by each likelihood."""
    return {name: fitted(name) for name in CHOSEN}


def solved(problem):
    return solve(
        problem.fn(),
        problem.x0,
        problem.data,
        bounds=problem.bounds,
        loss=problem.likelihood,
    )


# Values and errors


@pytest.mark.parametrize("name", CHOSEN)
def test_values_and_errors_are_those_of_solve(fits, name):
    ours, theirs = fits[name], solved(PROBLEMS[name])
    x, errors = np.array(list(ours.values.values())), theirs.stderr()
    assert_allclose((x - theirs.x) / errors, 0, atol=1e-9)
    assert_allclose(list(ours.errors.values()), errors, rtol=1e-8)
    assert ours.covariance_kind == "inverse expected information"
    assert ours.absolute_sigma


def rows_of(problem, x, step=1e-5):
    """The gradient of each row's minus log-likelihood, by differences."""
    columns = []
    for k in range(len(x)):
        by = np.zeros(len(x))
        by[k] = step * max(abs(x[k]), 0.1)
        ends = [problem.mean(np, x + s * by, problem.t) for s in (1, -1)]
        up, down = (problem.cost(mean, problem.observed) for mean in ends)
        columns.append(np.ravel(up - down) / (2 * by[k]))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_observed_information_is_the_hessian_by_numpy(fits, name):
    problem, x = PROBLEMS[name], fits[name].numbers.x
    ours = fitted(name, covariance="observed")
    hessian = problem.hessian(x, np.maximum(np.abs(x), 0.1))
    assert_allclose(ours.covariance, np.linalg.inv(hessian), rtol=1e-5)
    assert ours.covariance_kind == "inverse observed information"
    assert_allclose(ours.numbers.x, x, rtol=1e-12)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_sandwich_by_numpy(fits, name):
    problem, plain = PROBLEMS[name], fits[name]
    gradients = rows_of(problem, plain.numbers.x)
    m, n = gradients.shape
    bread = plain.covariance
    sandwich = bread @ gradients.T @ gradients @ bread * m / (m - n)
    ours = fitted(name, covariance="sandwich")
    assert_allclose(ours.covariance, sandwich, rtol=1e-5, atol=1e-9 * sandwich.max())
    assert ours.covariance_kind.startswith("sandwich")


@pytest.mark.parametrize("absolute", [True, False])
def test_the_observed_information_of_least_squares(absolute):
    sigma = 2.0
    ours = fit(
        decay,
        T,
        COUNTS,
        p0=START,
        sigma=sigma,
        absolute_sigma=absolute,
        covariance="observed",
    )
    a, k, b = ours.numbers.x
    e = np.exp(-T / k)
    r = (a * e + b - COUNTS) / sigma
    slopes = np.stack([e, a * e * T / k**2, np.ones_like(T)], axis=1) / sigma
    hessian = slopes.T @ slopes
    hessian[0, 1] += r @ (e * T / k**2) / sigma
    hessian[1, 0] = hessian[0, 1]
    hessian[1, 1] += r @ (a * e * (T**2 / k**4 - 2 * T / k**3)) / sigma
    scale = 1.0 if absolute else r @ r / (T.size - 3)
    assert_allclose(ours.covariance, scale * np.linalg.inv(hessian), rtol=1e-8)
    words = "sigma as given" if absolute else "scaled"
    assert ours.covariance_kind == f"inverse Hessian of the cost, {words}"


WAYS = {
    "watched": {"callback": lambda step: None},
    "limited": {"time_limit": 100.0},
    "rowwise": {"rowwise": True},
    "starts": {"starts": 8},
}


@pytest.mark.parametrize(
    ("way", "covariance"),
    [
        *((way, "gram") for way in WAYS),
        ("watched", "observed"),
        ("watched", "sandwich"),
    ],
)
def test_all_ways_give_the_same(way, covariance):
    one = fit(decay, T, COUNTS, covariance=covariance, **SETTINGS)
    other = fit(decay, T, COUNTS, covariance=covariance, **SETTINGS, **WAYS[way])
    assert_allclose(other.numbers.x, one.numbers.x, rtol=1e-8)
    assert_allclose(other.covariance, one.covariance, rtol=1e-7)
    if way == "starts":
        assert other.minima[0][1] == 8


def in_numpy(t, a, k, b):
    return a * np.exp(-t / k) + b


def on_host(t, a, k, b):
    return in_numpy(t, float(a), float(k), float(b))


@pytest.mark.parametrize(
    ("model", "number"),
    [
        (in_numpy, None),
        (on_host, None),
        (on_host, 2.0),
        (on_host, np.full(T.size, 2.0)),
    ],
)
def test_models_in_numpy_and_on_the_host(model, number):
    loss = POISSON if number is None else losses.PoissonGaussian(number)
    settings = SETTINGS | {"loss": loss}
    one = fit(decay, T, COUNTS, **settings)
    other = fit(model, T, COUNTS, host=model is on_host, **settings)
    assert_allclose(other.numbers.x, one.numbers.x, rtol=1e-6)
    assert_allclose(other.covariance, one.covariance, rtol=1e-4)
    assert_allclose(other.deviance, one.deviance, rtol=1e-10)


# How well it fits


@pytest.mark.parametrize("name", CHOSEN)
def test_likelihood_and_criteria(fits, name):
    problem, ours = PROBLEMS[name], fits[name]
    mean = ours.best_fit
    m, n = problem.observed.size, len(problem.x0)
    total = -np.sum(problem.minus_log(mean, problem.observed))
    assert_allclose(ours.log_likelihood, total, rtol=1e-10)
    assert_allclose(ours.aic, 2 * n - 2 * total, rtol=1e-10)
    assert_allclose(ours.aicc, ours.aic + 2 * n * (n + 1) / (m - n - 1), rtol=1e-10)
    assert_allclose(ours.bic, n * np.log(m) - 2 * total, rtol=1e-10)
    cost = problem.cost(mean, problem.observed)
    if problem.likelihood.is_deviance:
        least = problem.cost(problem.observed, problem.observed)
        assert_allclose(ours.deviance, 2 * np.sum(cost - least), rtol=1e-9)
    else:
        assert_allclose(ours.deviance, -2 * total, rtol=1e-10)
    assert ours.chi_square == ours.deviance
    assert ours.dof == m - n


DISTRIBUTIONS = {
    "lifetime": lambda mean: scipy.stats.poisson(mean),
    "doses": lambda mean: scipy.stats.binom(
        PROBLEMS["doses"].t[1].astype(int), mean / PROBLEMS["doses"].t[1]
    ),
    "intensities": lambda mean: scipy.stats.gamma(4.0, scale=mean / 4.0),
    "magnitudes": lambda mean: scipy.stats.rice(mean / SIGMA, scale=SIGMA),
    "tails": lambda mean: scipy.stats.t(2.5, mean, 0.3),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_residuals_by_scipys_distributions(fits, name):
    problem, ours = PROBLEMS[name], fits[name]
    mean, y = ours.best_fit, problem.observed
    law = DISTRIBUTIONS[name](mean)
    pearson = (y - law.mean()) / law.std()
    assert_allclose(ours.standardized_residuals, pearson, rtol=1e-6, atol=1e-9)
    assert_allclose(ours.residuals, y - mean)
    roots = ours.deviance_residuals
    if name == "magnitudes":
        assert_array_equal(roots, ours.standardized_residuals)
        return
    assert_allclose(np.sum(roots**2), ours.deviance, rtol=1e-10)
    assert_array_equal(np.sign(roots), np.sign(y - mean))


def test_residuals_of_a_camera(fits):
    problem, ours = PROBLEMS["camera"], fits["camera"]
    mean, variance = ours.best_fit, problem.likelihood.readout
    pearson = (problem.observed - mean) / np.sqrt(mean + variance)
    assert_allclose(ours.standardized_residuals, pearson)
    assert_allclose(np.sum(ours.deviance_residuals**2), ours.deviance)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_deviance_that_is_expected(fits, name):
    problem, ours = PROBLEMS[name], fits[name]
    found, moments = (
        ours.expected_deviance,
        problem.likelihood.expected_deviance(ours.best_fit),
    )
    if name == "magnitudes":
        assert found is moments is None
        return
    assert_allclose(found.value, np.sum(moments.expectation) - len(problem.x0))
    assert_allclose(found.deviation, np.sqrt(np.sum(moments.variance)))


def test_the_deviance_of_simulations_is_what_is_expected():
    """Also its scatter; far from chi-square's, of which both are larger."""
    many = fit_batch(decay, T, drawn(1, 2000, a=4.0, b=0.3), **SETTINGS)
    good = many.success
    assert np.mean(good) > 0.99
    predicted = many.expected_deviance
    error = np.std(many.deviance[good]) / np.sqrt(np.sum(good))
    difference = np.mean(many.deviance[good]) - np.mean(predicted.value[good])
    assert abs(difference) < 4 * error + 0.3
    scatter = np.std((many.deviance - predicted.value)[good])
    assert_allclose(scatter, np.mean(predicted.deviation[good]), rtol=0.1)


# Points, parameters, data sets


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("number", [None, 1.0 + np.arange(T.size) % 3])
def test_points_that_do_not_count(masked, number):
    gone = np.isin(np.arange(T.size), [5, 30])
    loss = POISSON if number is None else losses.PoissonGaussian(number)
    y = np.where(gone, -7.0 if masked else np.nan, COUNTS)
    settings = SETTINGS | {"loss": loss}
    y = np.ma.masked_array(y, gone) if masked else y
    ours = fit(decay, T, y, nan_policy="omit", **settings)
    if np.ndim(number):
        settings["loss"] = losses.PoissonGaussian(number[~gone])
    cut = fit(decay, T[~gone], COUNTS[~gone], **settings)
    assert_allclose(ours.numbers.x, cut.numbers.x, rtol=1e-9)
    assert_allclose(ours.covariance, cut.covariance, rtol=1e-8)
    for name in ("deviance", "log_likelihood", "aicc", "bic", "ndata", "dof"):
        assert_allclose(getattr(ours, name), getattr(cut, name), rtol=1e-9)
    assert_allclose(ours.expected_deviance, cut.expected_deviance, rtol=1e-9)
    assert_array_equal(np.isnan(ours.deviance_residuals), gone)
    assert_array_equal(ours.outliers(), np.zeros(T.size, bool))
    assert np.all(np.isfinite(ours.prediction_band()))
    x = np.array([5.0, 1.5, 0.8])
    assert_allclose(ours.log_density(x), cut.log_density(x), rtol=1e-10)
    if np.ndim(number):
        slopes = jax.grad(ours.log_density)(x), jax.grad(cut.log_density)(x)
        assert_allclose(*slopes, rtol=1e-9)


@pytest.mark.parametrize("name", ["intensities", "magnitudes"])
def test_a_masked_point_of_what_is_positive(name):
    problem = PROBLEMS[name]
    gone = np.arange(problem.observed.size) == 3
    y = np.ma.masked_array(problem.observed, gone)
    ours = fit(model_of(problem), problem.t, y, p0=problem.x0, loss=problem.likelihood)
    assert np.isfinite(ours.log_density(ours.numbers.x))
    slope = jax.grad(ours.log_density)(ours.numbers.x)
    assert_allclose(slope * np.sqrt(np.diag(ours.covariance)), 0, atol=1e-6)


def test_priors():
    """The minimum of half the deviance and the prior's square, by SciPy."""
    ours = fit(decay, T, COUNTS, prior={"k": (1.2, 0.05)}, **SETTINGS)

    def cost(x):
        mean = in_numpy(T, *x)
        rows = mean - COUNTS + scipy.special.xlogy(COUNTS, COUNTS / mean)
        return np.sum(rows) + 0.5 * ((x[1] - 1.2) / 0.05) ** 2

    best = scipy.optimize.minimize(cost, ours.numbers.x, tol=1e-12)
    errors = np.array(list(ours.errors.values()))
    assert_allclose((ours.numbers.x - best.x) / errors, 0, atol=1e-4)
    assert_allclose(ours.deviance, 2 * best.fun, rtol=1e-10)
    information = fisher(ours.numbers.x) + np.diag([0, 1 / 0.05**2, 0])
    assert_allclose(ours.covariance, np.linalg.inv(information), rtol=1e-8)
    assert ours.expected_deviance is None
    assert ours.dof == T.size + 1 - 3
    prior = 0.5 * ((ours.values["k"] - 1.2) / 0.05) ** 2
    total = np.sum(scipy.stats.poisson.logpmf(COUNTS, ours.best_fit))
    assert_allclose(ours.log_likelihood, total - prior)
    x = np.array([5.0, 1.3, 0.7])
    assert_allclose(ours.log_density(x), -cost(x), rtol=1e-12)
    assert_array_equal(ours.log_density(np.array([5.0, 1.3, -0.1])), -np.inf)
    assert ours.warnings() == []
    with pytest.raises(ValueError, match="a prior is none"):
        ours.bootstrap(10)


def fisher(x):
    """Poisson's expected information of the decay."""
    a, k = x[:2]
    e = np.exp(-T / k)
    slopes = np.stack([e, a * e * T / k**2, np.ones_like(T)], axis=1)
    return slopes.T @ (slopes / in_numpy(T, *x)[:, None])


def test_ties_and_fixed_parameters():
    settings = {"p0": START, "loss": POISSON, "bounds": {"k": (0.1, None)}}
    tied = fit(decay, T, COUNTS, tie={"b": lambda p: p["a"] / 10}, **settings)
    held = fit(decay, T, COUNTS, fixed={"b": 1.0}, **settings)
    assert_allclose(tied.values["b"], tied.values["a"] / 10)
    jacobian = np.array([[1, 0], [0, 1], [0.1, 0]])
    information = jacobian.T @ fisher(list(tied.values.values())) @ jacobian
    assert_allclose(tied.covariance, np.linalg.inv(information), rtol=1e-8)
    information = fisher(list(held.values.values()))[:2, :2]
    assert_allclose(held.covariance, np.linalg.inv(information), rtol=1e-8)
    predicted = POISSON.expected_deviance(held.best_fit)
    assert_allclose(held.expected_deviance.value, sum(predicted.expectation) - 2)


def test_dates_and_bins(counted):
    days = np.datetime64("2024-01-01") + np.arange(T.size).astype("m8[D]")
    width = T[1] - T[0]
    slow = SETTINGS | {"p0": START | {"k": 20.0}}
    dated = fit(decay, days, COUNTS, **slow)
    assert_allclose(dated.values["k"], counted.values["k"] / width, rtol=1e-7)
    assert_allclose(dated.errors["k"], counted.errors["k"] / width, rtol=1e-6)
    edges = np.linspace(0, 6.1, T.size + 1)
    model = models.Exponential() + models.Constant()
    binned = fit(model, y=COUNTS, edges=edges, loss=POISSON)
    assert_allclose(binned.deviance, counted.deviance, rtol=0.01)
    band = binned.prediction_band(np.linspace(0, 6, 5))
    assert_allclose(band.value, binned.predict(np.linspace(0, 6, 5)))
    assert_array_equal(band.lower, np.round(band.lower))


@pytest.fixture(scope="module")
def shared():
    """Three decays that share a rate: a batch, and the same as one fit."""
    y = drawn(3, 3)
    batch = fit_batch(decay, T, y, shared="k", **SETTINGS)
    return batch, fit(decay, [T] * 3, list(y), local=("a", "b"), **SETTINGS)


def test_shared_parameters_are_those_of_the_stacked_data(shared):
    batch, stacked = shared
    for k in range(3):
        for name, whole in (("a", f"a_{k + 1}"), ("b", f"b_{k + 1}")):
            assert_allclose(batch[name][k], stacked.values[whole], rtol=1e-7)
            assert_allclose(batch.errors[name][k], stacked.errors[whole], rtol=1e-6)
    assert_allclose(batch["k"], stacked.values["k"], rtol=1e-7)
    assert_allclose(batch.errors["k"], stacked.errors["k"], rtol=1e-6)
    assert_allclose(np.sum(batch.deviance), stacked.deviance, rtol=1e-10)
    assert batch.dof == stacked.dof
    one, all_ = batch.expected_deviance, stacked.expected_deviance
    assert_allclose(np.sum(one.value), all_.value, rtol=1e-9)
    assert_allclose(np.linalg.norm(one.deviation), all_.deviation, rtol=1e-9)
    first = batch.fit(0)
    assert_allclose(first.expected_deviance.value, one.value[0], rtol=1e-9)
    assert_allclose(first.deviance, batch.deviance[0], rtol=1e-10)
    assert "deviance" in str(batch)
    assert "chi²" not in str(batch)
    cost = stacked.deviance_residuals[1] @ stacked.deviance_residuals[1]
    assert f"Data set 2: 64 points, twice the cost {cost:.5g}." in str(stacked)


def test_the_sandwich_of_shared_parameters():
    y = drawn(3, 3)
    settings = SETTINGS | {"covariance": "sandwich"}
    batch = fit_batch(decay, T, y, shared="k", **settings)
    stacked = fit(decay, [T] * 3, list(y), local=("a", "b"), **settings)
    assert_allclose(batch.errors["k"], stacked.errors["k"], rtol=1e-6)
    assert_allclose(batch.errors["a"][1], stacked.errors["a_2"], rtol=1e-6)


def test_several_data_sets_of_different_lengths():
    y = drawn(4), drawn(5, a=12.0, b=2.0)[:40]
    ours = fit(decay, [T, T[:40]], y, local=("a", "b"), **SETTINGS)
    assert_allclose(ours.deviance, sum(r @ r for r in ours.deviance_residuals))
    assert [len(mask) for mask in ours.outliers()] == [64, 40]
    assert ours.prediction_band(data_set=2).lower.shape == (40,)
    assert np.isfinite(ours.log_density(ours.numbers.x))
    assert ours.warnings() == []
    settings = SETTINGS | {"loss": losses.PoissonGaussian(np.ones(64))}
    with pytest.raises(ValueError, match="several data sets are fitted together"):
        fit(decay, [T, T], [y[0], y[0]], local=("a", "b"), **settings)


# Intervals


def profiled(y, k, value):
    """The least deviance with one parameter held, by SciPy; up to a constant."""

    def deviance(others):
        mean = in_numpy(T, *np.insert(others, k, value))
        return 2 * np.sum(mean - scipy.special.xlogy(y, mean))

    start = np.delete([5.0, 1.5, 1.0], k)
    least = np.delete([1e-9, 0.1, 1e-9], k)
    return min(
        scipy.optimize.minimize(
            deviance,
            start * factor,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(least, np.inf),
            options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000},
        ).fun
        for factor in (1.0, 0.6, 1.5)
    )


def test_profiles_are_likelihood_ratios(counted):
    levels = (0.6827, 0.95)
    intervals = counted.intervals("profile", levels)
    mean = counted.best_fit
    least = 2 * np.sum(mean - scipy.special.xlogy(COUNTS, mean))
    for k, name in enumerate(START):
        for level in levels:
            rise = scipy.stats.chi2.ppf(level, 1)
            for end in intervals[name][level]:
                if end > 0:  # a bound may be nearer
                    found = profiled(COUNTS, k, end) - least
                    assert_allclose(found, rise, rtol=2e-4)
    assert intervals["b"][0.95][0] == 0
    assert profiled(COUNTS, 2, 1e-9) - least < scipy.stats.chi2.ppf(0.95, 1)


def test_contours_are_likelihood_ratios(counted):
    edge = counted.contour("a", "k", 0.5, points=8)
    mean = counted.best_fit
    least = 2 * np.sum(mean - scipy.special.xlogy(COUNTS, mean))
    rise = scipy.stats.chi2.ppf(0.5, 2)
    for a, k in edge.points[0]:

        def deviance(b, a=a, k=k):
            mean = in_numpy(T, a, k, b)
            return 2 * np.sum(mean - scipy.special.xlogy(COUNTS, mean))

        best = scipy.optimize.minimize_scalar(
            deviance, bounds=(0, 10), method="bounded", options={"xatol": 1e-10}
        )
        assert_allclose(best.fun - least, rise, rtol=1e-4)


@pytest.mark.parametrize("number", [1, 20])
def test_a_rate_without_a_count(number):
    """n bins without any: minus twice the log-likelihood is 2 n rate."""
    x = np.arange(float(number))

    def rate(x, r):
        return r + 0 * x

    ours = fit(
        rate, x, np.zeros(number), p0=[1.0], bounds={"r": (0, None)}, loss=POISSON
    )
    assert ours.values["r"] == ours.deviance == ours.log_likelihood == 0
    assert ours.params["r"].at_bound == -1
    if number > 1:
        levels = (0.6826894921370859, 0.95)
        ends = ours.intervals("profile", levels)["r"]
        for level in levels:
            limit = scipy.stats.chi2.ppf(level, 1) / (2 * number)
            assert_allclose(ends[level], (0, limit), rtol=1e-5)
    assert ours.expected_deviance == (0, 0)
    assert not ours.outliers().any()
    assert_array_equal(ours.deviance_residuals, 0)
    assert_array_equal(ours.prediction_band().upper, 0)
    assert "at lower bound" in str(ours)
    assert len(ours.warnings()) == 1
    without = fit(
        rate,
        x,
        np.zeros(number),
        p0=[1.0],
        bounds={"r": (0, None)},
        loss=POISSON,
        covariance="observed",
    )
    assert np.isinf(without.errors["r"])
    assert number == 1 or "no curvature along r" in " ".join(without.warnings())


def test_counts_of_zero_without_a_bound_are_told():
    with pytest.raises(jaxfit.fitting.FitError, match="bound the parameters so that"):
        fit(models.Constant(), T, np.zeros(T.size), loss=POISSON)


def test_a_band_of_counts_holds_its_level():
    """Whole numbers; of those drawn anew at least the level lies within."""
    ours = fit(decay, T, drawn(7, a=60.0, b=5.0), **SETTINGS)
    band = ours.prediction_band(level=0.9)
    for ends in (band.lower, band.upper):
        assert_array_equal(ends, np.round(ends))
    new = drawn(8, 4000, a=60.0, b=5.0)
    inside = (new >= band.lower) & (new <= band.upper)
    assert 0.89 < np.mean(inside) < 0.96
    other = ours.prediction_band([1.0, 20.0], level=0.9)
    assert other.upper.shape == (2,)
    spread = ours.confidence_band([1.0, 20.0]).stderr
    assert_allclose(other.stderr, np.hypot(spread, np.sqrt(other.value)))


@pytest.mark.parametrize("name", ["camera", "doses", "intensities", "magnitudes"])
def test_bands_of_others(fits, name):
    problem, ours = PROBLEMS[name], fits[name]
    band = ours.prediction_band(level=0.68)
    judged = ours.judged
    shape = np.shape(problem.observed)
    spread = np.hypot(
        ours.confidence_band().stderr, np.sqrt(judged.variance).reshape(shape)
    )
    assert_allclose(band.value, judged.expected.reshape(shape))
    assert_allclose(band.stderr, spread)
    if name != "camera":
        assert np.all(band.lower >= 0)
    if name == "doses":
        assert np.all(band.upper <= problem.t[1])
    if name in ("camera", "doses"):
        with pytest.raises(ValueError, match="Leave out x"):
            ours.prediction_band(problem.t)


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("resample", [None, "case"])
def test_the_bootstrap_scatters_as_the_errors_say(fits, name, resample):
    found = fits[name].bootstrap(400, resample)
    assert found.resample == (resample or "parametric")
    assert np.mean(found.status > 0) > 0.95
    middle = np.quantile(found.values[found.status > 0], [0.16, 0.84], axis=0)
    spread = 0.5 * (middle[1] - middle[0])
    errors = np.array(list(fits[name].errors.values()))
    assert np.all((0.5 < spread / errors) & (spread / errors < 1.7))


def test_the_bootstrap_in_words(counted):
    with pytest.raises(ValueError, match="'parametric', which draws from"):
        counted.bootstrap(10, "residual")


def test_density_and_draws(counted):
    x = np.array([5.0, 1.3, 0.7])
    total = np.sum(scipy.stats.poisson.logpmf(COUNTS, in_numpy(T, *x)))
    whole = counted.log_likelihood - total
    rise = counted.log_density(counted.numbers.x) - counted.log_density(x)
    assert_allclose(rise, whole, rtol=1e-9)
    assert_allclose(counted.log_density(counted.numbers.x), -counted.deviance / 2)
    draws = counted.draws(4000)
    assert np.all(draws["b"] >= 0)
    assert_allclose(np.std(draws["a"]), counted.errors["a"], rtol=0.1)


def test_outliers():
    """A hot pixel is found, and the level holds for whole numbers."""
    hot = np.where(np.arange(T.size) == 40, 30.0, COUNTS)
    ours = fit(decay, T, hot, **SETTINGS)
    assert_array_equal(np.flatnonzero(ours.outliers()), [40])
    many = fit_batch(decay, T, drawn(9, 1000, a=60.0, b=10.0), **SETTINGS)
    masks = many.outliers(0.05)
    assert np.mean(masks.any(axis=1)) < 0.08
    assert_array_equal(many.fit(3).outliers(0.05), masks[3])


# For people


@pytest.mark.parametrize("name", CHOSEN)
def test_files_and_pickles(fits, name, tmp_path):
    ours, path = fits[name], tmp_path / "fit.npz"
    ours.save(path)
    other = jaxfit.fitting.Fit.load(path, model_of(PROBLEMS[name]))
    assert other.report() == ours.report()
    assert_array_equal(other.deviance_residuals, ours.deviance_residuals)
    assert other.expected_deviance == ours.expected_deviance
    assert_allclose(other.bootstrap(3).values, ours.bootstrap(3).values)


def test_pickles_and_files_of_library_models(tmp_path):
    ours = fit(models.Exponential() + models.Constant(), T, COUNTS, loss=POISSON)
    ours.save(tmp_path / "fit.npz")
    for other in (
        pickle.loads(pickle.dumps(ours)),
        jaxfit.fitting.Fit.load(tmp_path / "fit.npz"),
    ):
        assert str(other) == str(ours)
        assert other.log_likelihood == ours.log_likelihood


def test_own_likelihoods_are_not_stored(tmp_path):
    ours = fitted("own")
    assert ours.expected_deviance is None
    assert "deviance" in str(ours)
    with pytest.raises(ValueError, match="OnlyCost is one of your own"):
        ours.save(tmp_path / "fit.npz")


def test_reports(counted, fits):
    text = counted.report()
    value, deviation = counted.expected_deviance
    said = f"deviance {counted.deviance:.5g} ({value:.5g} ± {deviation:.3g} expected)"
    assert said in str(counted)
    assert said in counted._repr_html_()
    assert "Errors: inverse expected information." in text
    assert "Likelihood of y: Poisson." in text
    assert f"{value:.5g} ± {deviation:.3g}" in text
    assert "chi" not in text
    magnitudes = fits["magnitudes"].report()
    assert "-2 log-likelihood" in magnitudes
    assert "not known" in magnitudes


def test_pictures_say_what_residuals_they_show(counted, fits):
    pytest.importorskip("matplotlib").use("Agg")
    for ours, label in ((counted, "deviance"), (fits["magnitudes"], "Pearson")):
        below = ours.plot().axes[1]
        assert below.get_ylabel() == f"{label}\nresidual"
        drawn_ = below.lines[-1].get_ydata()
        assert_allclose(drawn_, ours.deviance_residuals)
        in_order, _ = ours.plot_residuals().axes
        assert in_order.get_ylabel() == f"{label} residual"
        assert_allclose(in_order.lines[-1].get_ydata(), ours.deviance_residuals)
    counted.plot_profile("a")
    counted.plot_contour("a", "k", 0.5)
    counted.plot_corner(number=20)
    fits["camera"].plot()
    fits["camera"].plot_residuals()
    pytest.importorskip("matplotlib.pyplot").close("all")


# Warnings


@pytest.mark.parametrize("seed", range(6))
def test_good_data_of_few_counts_are_warned_of_nothing(seed):
    """Long runs of zeros beside a peak are no pattern."""
    mean = 40 * np.exp(-0.5 * ((T - 3) / 0.4) ** 2) + 0.05
    y = np.random.default_rng(seed).poisson(mean).astype(float)
    model = models.Gaussian() + models.Constant()
    ours = fit(model, T, y, loss=POISSON, bounds={"c": (0, None)})
    assert [text for text in ours.warnings() if "bound" not in text] == []


def test_noise_floors_are_warned_of_nothing():
    """Magnitudes lie above the underlying curve, as they should."""
    rng = np.random.default_rng(1)
    y = np.hypot(2 * np.exp(-T) + rng.normal(size=64), rng.normal(size=64))
    ours = fit(models.Exponential(), T, y, loss=losses.Rician(1.0))
    assert np.mean(ours.residuals > 0) > 0.9
    assert ours.warnings() == []
    assert ours.r_squared > -0.1


def test_what_is_wrong_is_warned_of():
    scattered = np.random.default_rng(2).negative_binomial(2, 2 / (2 + expected(60)))
    wide = fit(decay, T, scattered.astype(float), **SETTINGS)
    assert any("standard deviations. The model" in text for text in wide.warnings())
    smooth = fit(decay, T, expected(60), **SETTINGS)
    assert any("scatter too little" in text for text in smooth.warnings())
    wave = np.random.default_rng(3).poisson(30 + 15 * np.sin(2 * T))
    flat = fit(decay, T, wave.astype(float), fixed={"k": 1.0}, p0=START, loss=POISSON)
    assert any("have a pattern" in text for text in flat.warnings())
    held = fit(decay, T, COUNTS, fixed={"a": 0.1, "k": 1.0}, p0=START, loss=POISSON)
    assert not any("higher likelihood" in text for text in held.warnings())
    worse = fit(decay, T, COUNTS, fixed={"a": 9.0, "k": 10.0}, **SETTINGS)
    assert any("has a higher likelihood" in text for text in worse.warnings())


# Errors

WRONG = {
    "negative": ({}, np.where(T > 5, -1.0, COUNTS), r"observed\[53\] is -1.0 and 10"),
    "NaN": ({}, np.where(T > 5, np.nan, COUNTS), "nan_policy='omit'"),
    "sigma": ({"sigma": 1.0}, COUNTS, "Leave out sigma"),
    "complex": ({}, COUNTS + 1j, "does not go with complex y"),
    "sigma_x": ({"sigma_x": 0.1}, COUNTS, "sigma_x goes with least squares"),
    "both": ({"sigma_x": 0.1, "sigma": 1.0}, COUNTS, "sigma_x goes with least"),
    "shape": ({"loss": losses.Binomial(np.ones(5))}, COUNTS, r"shape \(5,\)"),
    "trials": ({"loss": losses.Binomial(3)}, COUNTS, "number of trials"),
    "arrays": (
        {"loss": losses.StudentT(np.ones(64), np.ones(64))},
        COUNTS,
        "only one of its numbers",
    ),
    "class": ({"loss": losses.Poisson}, COUNTS, "instance of a loss or a likelihood"),
    "host": (
        {"host": True, "covariance": "observed"},
        COUNTS,
        "made of second derivatives",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_told(name):
    settings, y, words = WRONG[name]
    model = on_host if name == "host" else decay
    with pytest.raises((ValueError, TypeError), match=words):
        fit(model, T, y, **(SETTINGS | settings))
    if name in ("negative", "sigma", "sigma_x", "trials", "class"):
        with pytest.raises((ValueError, TypeError), match=words.replace("53", "0, 53")):
            fit_batch(model, T, np.stack([y, COUNTS]), **(SETTINGS | settings))


def test_the_place_of_what_is_wrong_is_that_in_the_data():
    y = np.where(np.arange(T.size) == 20, -3.0, COUNTS)
    y[4] = np.nan
    with pytest.raises(ValueError, match=r"observed\[20\] is -3.0; give counts"):
        fit(decay, T, y, nan_policy="omit", **SETTINGS)
    with pytest.raises(ValueError, match=r"observed\[1, 20\] is -3.0; give counts"):
        fit_batch(decay, T, np.stack([COUNTS, y]), **SETTINGS)


def test_a_start_out_of_range_is_told():
    with pytest.raises(jaxfit.fitting.FitError, match="a mean lies outside") as told:
        fit(decay, T, COUNTS, p0=START | {"a": -3.0}, loss=POISSON)
    words = f"the model is -2.5 at point 0 of those that count, where {COUNTS[0]:g} was"
    assert words in str(told.value)


def test_observed_information_is_for_single_fits():
    y = drawn(3, 3)
    for loss in (POISSON, None):
        settings = SETTINGS | {"loss": loss, "covariance": "observed"}
        with pytest.raises(ValueError, match="covariance='observed' goes with single"):
            fit_batch(decay, T, y, shared="k", **settings)
    with pytest.raises(ValueError, match="covariance='observed' is made of single"):
        fit(decay, T, y[0], p0=START, sigma=1, sigma_x=0.1, covariance="observed")


# Many fits


@pytest.mark.parametrize("covariance", ["gram", "observed", "sandwich"])
@pytest.mark.parametrize("kind", ["one", "shared", "each"])
def test_a_batch_is_each_fit(kind, covariance):
    y, gone = drawn(6, 3), np.zeros((3, T.size), bool)
    gone[1, 7] = gone[2, 20] = True
    of_each = 1.0 + np.arange(3 * T.size).reshape(3, -1) % 4
    numbers = {"one": 2.0, "shared": of_each[0], "each": of_each}[kind]
    settings = SETTINGS | {"covariance": covariance}
    batch = fit_batch(
        decay,
        T,
        np.ma.masked_array(np.where(gone, -50, y), gone),
        **(settings | {"loss": losses.PoissonGaussian(numbers)}),
    )
    predicted = batch.expected_deviance
    for k in range(3):
        own = losses.PoissonGaussian(numbers[k] if kind == "each" else numbers)
        alone = fit(
            decay,
            T,
            np.ma.masked_array(y[k], gone[k]),
            **(settings | {"loss": own}),
        )
        for one in (alone, batch.fit(k)):
            for name in START:
                assert_allclose(batch[name][k], one.values[name], rtol=1e-6)
                assert_allclose(batch.errors[name][k], one.errors[name], rtol=1e-5)
            assert_allclose(batch.deviance[k], one.deviance, rtol=1e-9)
            assert_allclose(predicted.value[k], one.expected_deviance.value, rtol=1e-6)
            assert_allclose(predicted.deviation[k], one.expected_deviance[1], rtol=1e-6)
            assert_array_equal(batch.outliers()[k], one.outliers())
            assert one.ndata == T.size - np.sum(gone[k])


def test_data_sets_without_points_and_points_without_x():
    y, x = drawn(6, 3), np.where(np.arange(T.size) == 9, np.nan, T)
    y[1] = np.nan
    batch = fit_batch(decay, x, y, **SETTINGS)
    predicted = batch.expected_deviance
    assert_array_equal(np.isfinite(predicted.value), [True, False, True])
    whole = batch.fit(2)
    assert_allclose(predicted.value[2], whole.expected_deviance.value, rtol=1e-9)


def test_labels_and_tables():
    xarray, pandas = pytest.importorskip("xarray"), pytest.importorskip("pandas")
    y = drawn(6, 3)
    plain = fit_batch(decay, T, y, **SETTINGS)
    labelled = xarray.DataArray(y.T, dims=("t", "row"), coords={"t": T})
    variances = xarray.DataArray(1.0 + np.arange(3), dims="row")
    named = fit_batch(decay, "t", labelled, **SETTINGS)
    maps = named.to_xarray()
    assert maps["a"].dims == ("row",)
    assert_allclose(maps["a"], plain["a"])
    assert_allclose(maps["chi_square"], plain.deviance)
    assert_allclose(plain.to_dataframe()["k_stderr"], plain.errors["k"])
    table = fit_batch(decay, T, pandas.DataFrame(y), **SETTINGS)
    assert_allclose(table["b"], plain["b"])
    camera = SETTINGS | {"loss": losses.PoissonGaussian(variances)}
    by_name = fit_batch(decay, "t", labelled, **camera)
    camera["loss"] = losses.PoissonGaussian((1.0 + np.arange(3))[:, None])
    by_place = fit_batch(decay, T, y, **camera)
    assert_allclose(by_name["a"], by_place["a"], rtol=1e-9)
    assert_allclose(by_name.fit(2).values["a"], by_place["a"][2], rtol=1e-6)
    assert_allclose(by_name.deviance[2], by_name.fit(2).deviance, rtol=1e-9)
