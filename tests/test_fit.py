"""`fit`: beside lmfit, what can be said of parameters, results, and bad input."""

import dataclasses
import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from beside_lmfit import PAIRS

import jaxfit
from jaxfit import losses, models
from jaxfit.fitting.inference import _statistics

X = np.linspace(0, 10, 120)
TRUTH = {"height": 3.0, "center": 4.0, "width": 0.7, "slope": 0.1, "intercept": 1.0}
MODEL = models.Gaussian() + models.Linear()
SIGMA = 0.1


def data(seed=0):
    noise = np.random.default_rng(seed).normal(size=X.size)
    return np.asarray(MODEL(X, TRUTH)) + SIGMA * noise


@pytest.fixture(scope="module")
def peak():
    """A peak on a line, with known errors."""
    return jaxfit.fit(MODEL, X, data(), sigma=SIGMA, absolute_sigma=True)


# Beside lmfit


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_numbers_are_lmfits(pair):
    ours, theirs = pair.ours(), pair.theirs_exactly()
    names = ours.varied
    at = {n: theirs.params[n] for n in names}

    def same(mine, other, **more):
        np.testing.assert_allclose(mine, other, rtol=1e-6, **more)

    same([ours.values[n] for n in names], [at[n].value for n in names])
    same([ours.errors[n] for n in names], [at[n].stderr for n in names])
    correlations = [[1 if a == b else at[a].correl[b] for b in names] for a in names]
    same(ours.correlation, correlations, atol=1e-9)
    same(ours.chi_square, theirs.chisqr)
    same(ours.reduced_chi_square, theirs.redchi)
    same(ours.aic, theirs.aic)
    same(ours.bic, theirs.bic)
    same(ours.best_fit, theirs.best_fit)
    assert (ours.ndata, ours.dof) == (theirs.ndata, theirs.nfree)


# Parameters


def test_fixed_tied_and_bounded_parameters(peak):
    double = MODEL + models.Gaussian(prefix="b_")
    y = data() + 2 * np.exp(-0.5 * ((X - 7) / 0.7) ** 2)
    fit = jaxfit.fit(
        double,
        X,
        y,
        sigma=SIGMA,
        fixed={"slope": 0.1},
        tie={"b_width": "width", "b_height": lambda p: 0.5 * p["height"] + 0.5},
        bounds={"center": (4.05, None)},
    )
    values, errors, params = fit.values, fit.errors, fit.params
    assert fit.varied == ("height", "center", "width", "intercept", "b_center")
    assert values["slope"] == 0.1
    assert errors["slope"] == 0
    assert params["slope"].kind == "fixed"
    assert values["b_width"] == values["width"]
    assert errors["b_width"] == errors["width"]
    assert params["b_width"].kind == "tied"
    np.testing.assert_allclose(values["b_height"], 0.5 * values["height"] + 0.5)
    np.testing.assert_allclose(errors["b_height"], 0.5 * errors["height"])
    assert values["center"] == 4.05
    assert params["center"].at_bound == -1
    assert "center is at its lower bound" in " ".join(fit.warnings())

    # the same as writing it out
    def plain(x, height, center, width, intercept, b_center):
        p = {"height": height, "center": center, "width": width, "intercept": intercept}
        p |= {"slope": 0.1, "b_height": 0.5 * height + 0.5, "b_center": b_center}
        return double.evaluate(x, p | {"b_width": width})

    start = {name: values[name] * 1.01 for name in fit.varied}
    other = jaxfit.fit(plain, X, y, sigma=SIGMA, p0=start, bounds={"center": (4.05, 9)})
    np.testing.assert_allclose(fit.numbers.x, other.numbers.x, rtol=1e-7)
    np.testing.assert_allclose(fit.covariance, other.covariance, rtol=1e-5)


class Raised(models.Model):
    """A line that starts above zero."""

    limits = {"height": (0.0, 9.0)}

    def function(self, x, slope, height):
        return slope * x + height


def test_a_tied_parameter_that_leaves_its_bounds_is_no_success():
    """It is told by `fit`, marked in a batch, and known to a bootstrap."""
    y = 2 * X - 3 + 0.1 * np.cos(7 * X)
    tie = {"tie": {"height": lambda p: p["slope"] - 5}, "p0": {"slope": 7.0}}
    with pytest.raises(jaxfit.FitError, match="takes what is tied out of its") as error:
        jaxfit.fit(Raised(), X, y, **tie)
    fit = error.value.fit
    assert fit.status == jaxfit.Status.INVALID_BOUNDS
    np.testing.assert_allclose(fit.values["height"], -3, atol=0.01)
    assert f"height = {fit.values['height']:.6g} (0 .. 9)" in str(error.value)
    assert "tied, outside its bounds" in str(fit)
    assert (fit.params["height"].lower, fit.params["height"].upper) == (0, 9)
    batch = jaxfit.fit_batch(Raised(), X, np.stack([y, 7 * X + 2]), **tie)
    assert batch.success.tolist() == [False, True]
    assert "INVALID_BOUNDS" in str(batch)
    assert (fit.bootstrap(4).status == jaxfit.Status.INVALID_BOUNDS).all()


def test_names_that_are_fixed_take_their_start():
    fit = jaxfit.fit(MODEL, X, data(), fixed=["slope"], p0={"slope": 0.2})
    assert fit.values["slope"] == 0.2
    one = jaxfit.fit(MODEL, X, data(), bounds={"slope": (0.2, 0.2)})
    np.testing.assert_allclose(one.numbers.x, fit.numbers.x, rtol=1e-8)


def test_a_prior_is_one_more_observation():
    model = models.Constant()
    y = np.array([1.0, 2.0, 3.0, 2.0])
    fit = jaxfit.fit(
        model, y, y, sigma=0.5, absolute_sigma=True, prior={"c": (5.0, 0.25)}
    )
    weights = np.array([4.0] * 4 + [16.0])
    mean = np.average([*y, 5.0], weights=weights)
    np.testing.assert_allclose(fit.values["c"], mean)
    np.testing.assert_allclose(fit.errors["c"], weights.sum() ** -0.5)
    assert (fit.ndata, fit.dof) == (4, 4)
    without = jaxfit.fit(model, y, y, prior={"c": (5.0, 0.25)})
    assert "There is a prior and no sigma" in " ".join(without.warnings())


def test_several_starts_find_the_best_of_several_minima():
    x = np.linspace(0, 6, 80)
    y = 2 * np.sin(3.1 * x)

    def wave(x, a, k):
        return a * jnp.sin(k * x)

    settings = {"p0": {"a": 1.0, "k": 6.0}, "bounds": {"k": (0.1, 10)}}
    single = jaxfit.fit(wave, x, y + 0.01 * np.cos(9 * x), **settings)
    many = jaxfit.fit(wave, x, y + 0.01 * np.cos(9 * x), starts=64, **settings)
    assert abs(single.values["k"] - 3.1) > 0.5
    np.testing.assert_allclose(many.values["k"], 3.1, atol=1e-3)
    costs = [cost for cost, _ in many.minima]
    assert len(costs) > 2
    assert costs == sorted(costs)
    assert np.isclose(costs[0], many.chi_square / 2)
    assert sum(count for _, count in many.minima) <= 64
    assert f"{len(costs)} distinct minima" in many.report()


def test_undetermined_parameters_are_told_not_invented():
    def twice(x, a, b):
        return (a + b) * x

    fit = jaxfit.fit(twice, X, 3 * X + np.sin(X))
    assert all(np.isinf(v) for v in fit.errors.values())
    assert fit.determined == {"a": False, "b": False}
    assert all(p.undetermined for p in fit.params.values())
    assert "do not determine a and b" in " ".join(fit.warnings())
    assert "unknown" in str(fit)
    assert np.isnan(fit.correlation[0, 1])
    assert fit.intervals("profile")["a"] == (-np.inf, np.inf)


def test_determined_does_not_count_points():
    """Two points and two parameters leave no error, and yet say what they are."""
    two = [1.0, 2.0]
    fit = jaxfit.fit(models.Linear(), two, two)
    assert fit.determined == {"slope": True, "intercept": True}
    assert "No degree of freedom" in " ".join(fit.warnings())
    assert "do not determine" not in " ".join(fit.warnings())
    tied = jaxfit.fit(lambda x, a, b: (a + 0 * b) * x, two, two, tie={"b": "a"})
    assert tied.determined == {"a": True, "b": True}
    held = jaxfit.fit(lambda x, a, b: a + 0 * b * x, two, two, fixed={"b": 1.0})
    assert held.determined == {"a": True, "b": True}


# The fit as a whole


def test_likelihood_and_criteria_are_those_of_normal_errors(peak):
    left = (data() - peak.best_fit) / SIGMA
    expected = scipy.stats.norm.logpdf(left * SIGMA, scale=SIGMA).sum()
    np.testing.assert_allclose(peak.log_likelihood, expected)
    np.testing.assert_allclose(peak.chi_square, np.sum(left**2))
    n, m = 5, X.size
    np.testing.assert_allclose(peak.aic, peak.chi_square + 2 * n)
    np.testing.assert_allclose(peak.bic, peak.chi_square + n * np.log(m))
    np.testing.assert_allclose(
        peak.aicc - peak.aic, 2 * n * (n + 1) / (m - n - 1), rtol=1e-9
    )
    relative = jaxfit.fit(MODEL, X, data())
    scale = np.sqrt(relative.chi_square / m)
    expected = scipy.stats.norm.logpdf(relative.residuals, scale=scale).sum()
    np.testing.assert_allclose(relative.log_likelihood, expected)
    total = np.sum((data() - data().mean()) ** 2)
    np.testing.assert_allclose(
        relative.r_squared, 1 - np.sum(relative.residuals**2) / total
    )


def test_points_that_are_left_out_do_not_count():
    y, keep = data(), np.ones(X.size, bool)
    keep[[3, 50, 51]] = False
    bad = np.where(keep, y, np.nan)
    expected = jaxfit.fit(MODEL, X[keep], y[keep], sigma=SIGMA)
    by_nan = jaxfit.fit(MODEL, X, bad, sigma=SIGMA, nan_policy="omit")
    sigma = np.where(keep, SIGMA, np.inf)
    by_sigma = jaxfit.fit(MODEL, X, y, sigma=sigma)
    x_gaps = jaxfit.fit(
        MODEL, np.where(keep, X, np.nan), y, sigma=SIGMA, nan_policy="omit"
    )
    for fit in (by_nan, by_sigma, x_gaps):
        assert (fit.ndata, fit.dof) == (X.size - 3, X.size - 8)
        for name in ("covariance", "chi_square", "aic", "log_likelihood", "r_squared"):
            np.testing.assert_allclose(
                getattr(fit, name), getattr(expected, name), rtol=1e-6
            )
        assert np.isnan(fit.residuals[3])


def test_sigma_is_not_looked_at_where_nothing_counts():
    y, sigma = data(), np.full(X.size, SIGMA)
    y[[3, 50, 51]], sigma[[3, 50, 51]] = np.nan, [np.nan, 0.0, -1.0]
    fit = jaxfit.fit(MODEL, X, y, sigma=sigma, nan_policy="omit")
    expected = jaxfit.fit(MODEL, X, y, sigma=np.full(X.size, SIGMA), nan_policy="omit")
    assert fit.report() == expected.report()
    sigma[7] = np.nan
    with pytest.raises(ValueError, match="sigma has 1 values that are not positive"):
        jaxfit.fit(MODEL, X, y, sigma=sigma, nan_policy="omit")


@pytest.mark.parametrize(
    "x",
    [X.tolist(), tuple(X), [X.tolist()] * 2, (X.tolist(), list(X))],
    ids=["list", "tuple", "lists", "tuple of lists"],
)
def test_lists_are_arrays(x):
    """Also where the curve is asked for elsewhere."""

    def line(x, a, b):
        return a + b * (x[1] if isinstance(x, tuple) or x.ndim == 2 else x)

    fit = jaxfit.fit(line, x, (1 + 2 * X).tolist())
    np.testing.assert_allclose(list(fit.values.values()), [1, 2], rtol=1e-9)
    part = jax.tree.map(lambda leaf: leaf[..., :3], fit.observed.data.x)
    as_lists = jax.tree.map(lambda leaf: leaf.tolist(), part)
    np.testing.assert_allclose(fit.predict(as_lists), 1 + 2 * X[:3])


def test_models_take_lists_by_themselves():
    found = models.Linear().guess(X.tolist(), (2 * X + 1).tolist())
    np.testing.assert_allclose(list(found.values()), [2, 1])
    np.testing.assert_allclose(models.Linear()([1.0, 2.0], found), [3, 5])


def test_bands_are_those_of_linear_regression():
    y = 2 * X + 1 + np.random.default_rng(0).normal(size=X.size)
    fit = jaxfit.fit(models.Linear(), X, y)
    at = np.array([-5.0, 0.0, 3.0])
    m, mean = X.size, X.mean()
    leverage = 1 / m + (at - mean) ** 2 / np.sum((X - mean) ** 2)
    s, t = np.sqrt(fit.reduced_chi_square), scipy.stats.t.ppf(0.95, m - 2)
    band = fit.confidence_band(at, level=0.9)
    np.testing.assert_allclose(band.stderr, s * np.sqrt(leverage))
    np.testing.assert_allclose(band.upper - band.value, t * band.stderr)
    wide = fit.prediction_band(at, level=0.9)
    np.testing.assert_allclose(wide.upper - wide.value, t * s * np.sqrt(1 + leverage))
    np.testing.assert_allclose(fit.predict(at), band.value)
    np.testing.assert_allclose(fit.predict(), fit.best_fit)


def test_components_and_residuals(peak):
    parts = peak.components()
    assert list(parts) == ["Gaussian", "Linear"]
    np.testing.assert_allclose(sum(parts.values()), peak.best_fit)
    np.testing.assert_allclose(peak.residuals, data() - peak.best_fit)
    assert 0.8 < np.std(peak.standardized_residuals) < 1.2
    relative = jaxfit.fit(MODEL, X, data())
    np.testing.assert_allclose(np.sum(relative.standardized_residuals**2), relative.dof)


def test_a_robust_loss_takes_the_sandwich():
    generator = np.random.default_rng(3)
    y = data() + np.where(generator.uniform(size=X.size) < 0.1, 3.0, 0)
    fit = jaxfit.fit(MODEL, X, y, loss=losses.Huber(0.2))
    assert "sandwich" in fit.covariance_kind
    assert "sandwich" in fit.report()
    assert "Huber" in fit.report()
    np.testing.assert_allclose(fit.values["center"], 4, atol=0.05)

    def score(x):  # the gradients of the single costs
        p = dict(zip(fit.varied, x, strict=True))
        r = MODEL.evaluate(jnp.asarray(X), p) - y
        return jnp.clip(r, -0.2, 0.2), r

    x = jnp.asarray(fit.numbers.x)
    psi, r = score(x)
    jacobian = np.asarray(jax.jacfwd(lambda x: score(x)[1])(x))
    bread = np.linalg.inv(jacobian.T @ ((np.abs(r) <= 0.2)[:, None] * jacobian))
    meat = jacobian.T @ (np.asarray(psi)[:, None] ** 2 * jacobian)
    expected = bread @ meat @ bread * X.size / (X.size - 5)
    np.testing.assert_allclose(fit.covariance, expected, rtol=1e-6)
    plain = jaxfit.fit(MODEL, X, y, loss=losses.Huber(0.2), covariance="gram")
    assert "inverse Gram" in plain.covariance_kind


def test_images_are_fitted_and_keep_their_shape():
    down, across = np.mgrid[:12, :14].astype(float)
    model = models.Gaussian2D() + models.Constant()
    truth = {"height": 9.0, "center_x": 6.0, "center_y": 5.0, "width": 1.5, "c": 2.0}
    y = np.asarray(model((across, down), truth))
    y = y + 0.1 * np.random.default_rng(0).normal(size=y.shape)
    fit = jaxfit.fit(model, (across, down), y)
    assert fit.best_fit.shape == (12, 14)
    for name, value in truth.items():
        np.testing.assert_allclose(fit.values[name], value, atol=0.1)
    edges = jaxfit.fit(model, (np.arange(14.0), np.arange(12.0)[:, None]), y)
    np.testing.assert_allclose(edges.numbers.x, fit.numbers.x, rtol=1e-9)


# In words and in files


def test_the_report_fits_the_page_and_says_what_matters(peak):
    for text in (str(peak), peak.report()):
        assert max(map(len, text.splitlines())) <= 88
        for word in ("Converged", "height", "fwhm", "area"):
            assert word in text
    assert "AICc" in peak.report()
    assert "95 % interval" in peak.report()
    assert "center=" in repr(peak)
    page = peak._repr_html_()
    assert page.count("<tr>") == 1 + 5 + 3
    long = models.Gaussian(prefix="a_very_long_name_of_a_peak_in_a_spectrum_")
    wide = jaxfit.fit(long + models.Linear(), X, data())
    assert max(map(len, str(wide).splitlines())) <= 88


def test_warnings_name_patterns_and_correlations():
    y = data()
    missing = jaxfit.fit(models.Linear(), X, y)
    assert "residuals have a pattern" in " ".join(missing.warnings())
    good = jaxfit.fit(MODEL, X, y)
    assert good.warnings() == []
    far = jaxfit.fit(
        models.Linear(), X + 100, 3 * X + np.random.default_rng(0).normal(size=X.size)
    )
    assert "Strongly correlated: slope and intercept" in " ".join(far.warnings())


NOISE = 0.1 * np.random.default_rng(0).normal(size=X.size)


@pytest.mark.parametrize(
    ("model", "y", "settings", "words"),
    [
        (lambda x, a: a * x, 5 + NOISE, {}, ["R² is -", "below 0: a constant"]),
        (
            lambda x, a: 0 * x + a,
            5 + NOISE,
            {"bounds": {"a": (None, 4)}},
            ["one sign: the curve lies below every point"],
        ),
        (
            lambda x, a: 0 * x + a,
            5 + NOISE,
            {"bounds": {"a": (6, None)}},
            ["one sign: the curve lies above every point"],
        ),
    ],
)
def test_doubts_are_said(model, y, settings, words):
    fit = jaxfit.fit(model, X, y, **settings)
    for part in words:
        assert part in " ".join(fit.warnings())


def test_a_best_fit_at_infinity_is_told():
    """A line as an exponential: its rate creeps to zero, and its height to infinity."""

    def bent(x, a, b, k):
        return a + b * jnp.exp(-k * x)

    start = {"a": -3e4, "b": 3e4, "k": -1e-4}
    with pytest.raises(jaxfit.FitError) as error:
        jaxfit.fit(bent, X, 3 * X + 10 * NOISE, p0=start)
    fit = error.value.fit
    told = " ".join(fit.warnings())
    assert "The last 500 evaluations lowered chi-square by" in str(error.value)
    assert "a from -" in told
    assert "The data do not determine a, b and k: the error is more" in told
    short = jaxfit.Options(max_steps=3)
    with pytest.raises(jaxfit.FitError) as error:  # which has not been long enough
        jaxfit.fit(bent, X, 3 * X + 10 * NOISE, p0=[0.0, 0.0, 1.0], options=short)
    assert "evaluations lowered" not in str(error.value)


@pytest.mark.parametrize("y", [np.cos(X - 5), 3 * (X - 5), 0 * X + 2, (X - 5) ** 2])
def test_a_parameter_that_is_zero_is_no_doubt(y):
    fit = jaxfit.fit(lambda x, a, b: a * (x - 5) + b, X, y)
    assert not [w for w in fit.warnings() if "determine" in w or "sign:" in w]


def test_the_runs_test_is_scipys_normal():
    generator = np.random.default_rng(0)
    values = [_statistics.pattern(generator.normal(size=100)) for _ in range(2000)]
    assert abs(np.mean(values)) < 0.1
    assert abs(np.std(values) - 1) < 0.1
    assert _statistics.pattern(np.sin(np.arange(100) / 10)) < -5


def test_dictionaries_are_json_and_tables_have_the_numbers(peak):
    text = json.dumps(peak.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["parameters"]["width"]["value"] == peak.values["width"]
    assert back["goodness"]["aic"] == peak.aic
    frame = peak.to_dataframe()
    assert frame.loc["fwhm", "stderr"] == peak["fwhm"].stderr
    labelled = peak.to_xarray()
    assert float(labelled.value.sel(param="slope")) == peak.values["slope"]
    assert labelled.covariance.shape == (5, 5)


def test_a_saved_fit_comes_back_whole(peak, tmp_path):
    path = tmp_path / "fit.npz"
    robust = jaxfit.fit(
        MODEL,
        X,
        data(),
        sigma=SIGMA,
        loss=losses.Cauchy(2.0),
        options=jaxfit.Options(
            *(1e-12, 1e-10, 1e-9, 500, np.array([1.0, 2.0, 0.5, 1.0]), "rev"),
            derivative="gauss-newton",
        ),
        fixed={"slope": 0.1},
        prior={"center": (4.0, 0.1)},
        bounds={"height": (0, 10)},
    )
    for fit in (peak, robust):
        fit.save(path)
        back = jaxfit.Fit.load(path)
        assert back.report() == fit.report()
        np.testing.assert_array_equal(back.covariance, fit.covariance)
        assert eqx.tree_equal(back.method, fit.method, typematch=True)
        band, again = fit.confidence_band(X[:5]), back.confidence_band(X[:5])
        np.testing.assert_allclose(again.stderr, band.stderr, rtol=1e-12)
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        older = dict(file)
    head = json.loads(str(older["head"]))
    for name in ("x_scale", "jac", "derivative"):  # as files had it at first
        del head["options"][name]
    np.savez(path, **older | {"head": np.array(json.dumps(head))})
    assert jaxfit.Fit.load(path).method.options == jaxfit.Options(
        1e-12, 1e-10, 1e-9, 500
    )


def test_a_file_of_before_is_read(peak, tmp_path):
    """Its numbers have the names that they have now, and integers are floats."""
    path = tmp_path / "fit.npz"
    peak.save(path)
    with np.load(path, allow_pickle=False) as file:
        older = dict(file)
    names = {name[8:] for name in older if name.startswith("numbers_")}
    assert names == set(
        "x covariance determined active cost optimality status nfev count gradient "
        "values errors start best".split()
    )
    for name in ("status", "nfev", "count"):
        older[f"numbers_{name}"] = older[f"numbers_{name}"].astype(float)
    np.savez(path, **older, numbers_forgotten=np.ones(3))
    back = jaxfit.Fit.load(path)
    assert type(back) is jaxfit.Fit
    assert back.report() == peak.report()
    assert back.params == peak.params


@pytest.mark.parametrize("kind", [jaxfit.Fit, jaxfit.BatchFit])
def test_methods_have_their_own_names(kind):
    """What `help` and a generator of documentation see."""
    public = {
        name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")
    }
    methods = {name: f for name, f in public.items() if inspect.isfunction(f)}
    assert len(methods) > 5
    for name, method in methods.items():
        assert method.__name__ == name
        assert method.__qualname__ == f"{kind.__name__}.{name}"
        assert method.__doc__
        signature = inspect.signature(method)
        assert signature.return_annotation is not signature.empty
        for parameter in signature.parameters.values():
            assert (
                parameter.name == "self" or parameter.annotation is not parameter.empty
            )
    for name in public.keys() - methods.keys():
        assert public[name] is None or public[name] == () or public[name].__doc__


class Own(losses.Loss):
    def rho(self, z):
        return z


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("options", jaxfit.Options(jac=lambda x, data: x), "jac of your own"),
        ("loss", Own(1.0), "loss Own is one of your own"),
    ],
)
def test_what_cannot_be_saved_is_refused(part, value, words, peak, tmp_path):
    method = peak.method._replace(**{part: value})
    fit = dataclasses.replace(peak, method=method)
    with pytest.raises(ValueError, match=words):
        fit.save(tmp_path / "fit.npz")
    assert not list(tmp_path.iterdir())


def test_a_fit_of_ones_own_function_asks_for_it(tmp_path):
    def line(x, a, b):
        return a * x + b

    fit = jaxfit.fit(line, X, 2 * X + 1, tie={"b": lambda p: p["a"] / 2})
    fit.save(tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="whose code is not stored"):
        jaxfit.Fit.load(tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="ties b"):
        jaxfit.Fit.load(tmp_path / "fit.npz", line)
    with pytest.raises(ValueError, match="the fit that was saved has a, b"):
        jaxfit.Fit.load(tmp_path / "fit.npz", lambda x, c: x)
    back = jaxfit.Fit.load(tmp_path / "fit.npz", line, tie={"b": lambda p: p["a"] / 2})
    assert back.values == fit.values
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"no file of Fit\.save"):
        jaxfit.Fit.load(tmp_path / "other.npz")


# Bad input


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"fixed": {"wdth": 1}}, ValueError, "fixed names 'wdth'"),
        ({"fixed": ["width"]}, ValueError, "without a value"),
        ({"p0": [1.0, 2.0]}, ValueError, "p0 has 2 numbers"),
        ({"p0": {"width": np.nan}}, ValueError, "finite"),
        ({"p0": {"width": -1.0}}, ValueError, "outside its bounds (0.0, inf)"),
        ({"fixed": {"width": -1.0}}, ValueError, "outside its bounds"),
        ({"bounds": {"width": 3}}, ValueError, "pair (lower, upper)"),
        ({"bounds": {"width": (3, 1)}}, ValueError, "the lower bound is above"),
        ({"bounds": [(0, 1)]}, TypeError, "dictionary by name"),
        ({"tie": {"width": 3.0}}, TypeError, "function of the parameters"),
        ({"tie": {"width": "wdth"}}, ValueError, "asks for 'wdth'"),
        (
            {"tie": {"width": "center", "center": "width"}},
            ValueError,
            "go round in a circle",
        ),
        (
            {"tie": {"width": "center"}, "fixed": {"width": 1}},
            ValueError,
            "both fixed and tied",
        ),
        (
            {"fixed": dict.fromkeys(TRUTH, 1.0)},
            ValueError,
            "let at least one vary",
        ),
        ({"prior": {"width": 1.0}}, ValueError, "pair (mean, standard deviation)"),
        ({"prior": {"width": (1.0, 0.0)}}, ValueError, "deviation positive"),
        ({"sigma": -1.0}, ValueError, "not positive"),
        ({"sigma": np.ones(3)}, ValueError, "does not broadcast"),
        ({"sigma": np.inf}, ValueError, "No point is left"),
        ({"nan_policy": "drop"}, ValueError, "'raise' or 'omit'"),
        ({"loss": "huber"}, TypeError, "loss"),
        ({"starts": 0}, ValueError, "starts is 0"),
        ({"covariance": "best"}, ValueError, "'gram', 'observed', 'sandwich'"),
    ],
)
def test_wrong_settings_are_explained(settings, kind, words):
    with pytest.raises(kind) as error:
        jaxfit.fit(MODEL, X, data(), **settings)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("x", "y", "kind", "words"),
    [
        (X, np.where(X < 1, np.nan, X), ValueError, "nan_policy='omit'"),
        (X, np.where(X < 1, np.inf, X), ValueError, "infinite"),
        (X + 1j, X, ValueError, "jaxfit.solve"),
        (X, [str(x) for x in X[:-1]] + ["?"], ValueError, "an array of real numbers"),
        (X, [{}] * X.size, TypeError, "an array of real numbers"),
        ("time", X, ValueError, "x is 'time'; expected an array of real numbers"),
        (X, X.astype("M8[s]"), TypeError, "(t - t[0]) / np.timedelta64(1, 's')"),
        (X, X.astype("m8[s]"), TypeError, "such as t / np.timedelta64(1, 's')"),
        (X[:-1], X, ValueError, "shape"),
        (X, X[:, None] * X, ValueError, "shape"),
    ],
)
def test_wrong_data_are_explained(x, y, kind, words):
    with pytest.raises(kind) as error:
        jaxfit.fit(MODEL, x, y)
    assert words in str(error.value)


def test_a_function_of_numpy_is_as_one_of_jax():
    ours = jaxfit.fit(lambda x, a, b: a * np.exp(b * x), X, np.exp(0.3 * X) + X)
    theirs = jaxfit.fit(lambda x, a, b: a * jnp.exp(b * x), X, np.exp(0.3 * X) + X)
    assert ours["b"].value == pytest.approx(theirs["b"].value, rel=1e-9)
    assert ours["b"].stderr == pytest.approx(theirs["b"].stderr, rel=1e-9)


def test_a_fit_that_finds_nothing_raises_and_can_be_looked_at():
    options = jaxfit.Options(max_steps=2)
    with pytest.raises(jaxfit.FitError, match="found no solution") as error:
        jaxfit.fit(MODEL, X, data(), p0=[1, 9, 3, 0, 0], options=options)
    fit = error.value.fit
    assert not fit.success
    assert fit.status == jaxfit.Status.MAX_STEPS
    assert "limit of function evaluations" in str(fit).replace("\n", " ")


def test_settings_of_the_process_stay_as_they_were():
    with jax.enable_x64(False):
        fit = jaxfit.fit(models.Linear(), X, 2 * X + 1)
        assert fit.numbers.x.dtype == np.float64
        assert jnp.ones(1).dtype == jnp.float32
    assert {f.name for f in dataclasses.fields(fit)} >= {"problem", "numbers"}
