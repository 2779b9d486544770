"""Fits to the counts of bins: integrals, guesses, bands, pictures, words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import jaxfit
from jaxfit import losses, models
from jaxfit.fitting._bins import coordinates_of
from jaxfit.models._binned import Binned, decayed, knows_integral, normal_mass

EDGES = np.array([-3.0, -2.5, -1.5, -1.4, -1.0, 0.0, 0.2, 1.0, 1.5, 2.5, 4.0, 5.0])
LOWER, UPPER = EDGES[:-1], EDGES[1:]
X = coordinates_of((EDGES,))


# Integrals


@pytest.mark.parametrize("center", [-30.0, -9.0, -1.0, 0.0, 0.3, 2.0, 12.0])
@pytest.mark.parametrize("width", [1e-7, 0.01, 0.2, 0.25, 0.3, 1.0, 6.0])
def test_the_mass_of_a_normal_distribution_has_all_digits(center, width):
    """Relative to itself, in the tails too; and its derivative."""
    a, b = center, center + width
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = 0.5 * (b - a) / 100  # of many pieces, whose terms have one sign
    middles = a + half * (1 + 2 * np.arange(100.0))
    exact = half * np.sum(weights * np.exp(-((middles[:, None] + half * nodes) ** 2)))
    if exact < 1e-290:
        return
    mass, by_end = jax.value_and_grad(normal_mass, 1)(a, b)
    np.testing.assert_allclose(mass, exact, rtol=2e-13)
    np.testing.assert_allclose(by_end, np.exp(-(b**2)), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("z", [-40.0, -0.6, -0.4, -1e-9, 0.0, 1e-12, 0.3, 0.51, 30.0])
def test_the_integral_of_a_decay_has_all_digits(z):
    exact = -np.expm1(-z) / z if z else 1.0
    value, slope = jax.value_and_grad(decayed)(z, 1.0)
    np.testing.assert_allclose(value, exact, rtol=5e-15)
    by_parts = scipy.integrate.quad(lambda t: -t * np.exp(-z * t), 0, 1)[0]
    np.testing.assert_allclose(slope, by_parts, rtol=1e-10)


MODELS = {
    "gaussian": (models.Gaussian(), {"height": 2.0, "center": 0.4, "width": 0.3}),
    "lorentzian": (models.Lorentzian(), {"height": 2.0, "center": 0.4, "width": 0.3}),
    "exponential": (models.Exponential(), {"amplitude": 2.0, "rate": 0.7}),
    "flat": (models.Exponential(), {"amplitude": 2.0, "rate": 0.0}),
    "constant": (models.Constant(), {"c": 1.5}),
    "linear": (models.Linear(), {"slope": 2.0, "intercept": -1.0}),
    "polynomial": (
        models.Polynomial(degree=14),
        {f"c{k}": (-0.3) ** k for k in range(15)},
    ),
    "by nodes": (models.Sine(), {"amplitude": 1.0, "frequency": 0.1, "phase": 0.3}),
}
MODELS["sum"] = (
    models.Gaussian() + models.Sine() + models.Constant(),
    MODELS["gaussian"][1] | MODELS["by nodes"][1] | {"c": 0.5},
)
MODELS["product"] = (
    models.Exponential() * models.Sine(prefix="s_"),
    MODELS["exponential"][1]
    | {f"s_{name}": value for name, value in MODELS["by nodes"][1].items()},
)


@pytest.mark.parametrize("name", MODELS)
def test_integrals_are_those_of_scipy(name):
    model, parameters = MODELS[name]
    values = Binned(model).evaluate(X, parameters)
    for value, lower, upper in zip(values, LOWER, UPPER, strict=True):
        exact = scipy.integrate.quad(
            lambda x: float(model(np.float64(x), parameters)),
            lower,
            upper,
            epsabs=1e-13,
            epsrel=1e-13,
        )[0]
        np.testing.assert_allclose(value, exact, rtol=1e-9, atol=1e-12)


def test_a_class_that_changes_the_function_loses_the_integral():
    class Twice(models.Gaussian):
        def function(self, x, height, center, width):
            return 2 * super().function(x, height, center, width)

    class Same(models.Gaussian):
        limits = {"width": (0.1, 1.0)}

    assert knows_integral(models.Gaussian())
    assert knows_integral(Same())
    assert not knows_integral(Twice())
    assert not knows_integral(models.Gaussian() + models.Constant())
    parameters = {"height": 2.0, "center": 0.4, "width": 1.3}
    both = [Binned(kind).evaluate(X, parameters) for kind in (Twice(), Same())]
    np.testing.assert_allclose(both[0], 2 * both[1], rtol=1e-4)


# Fits

RANDOM = np.random.default_rng(5)
WIDE = np.linspace(0.0, 10.0, 13)  # bins wider than the peak
PEAK = models.Gaussian() + models.Constant()
TRUTH = {"height": 800.0, "center": 4.3, "width": 0.7, "c": 30.0}
EXPECTED = Binned(PEAK).evaluate(coordinates_of((WIDE,)), TRUTH)


def test_exact_counts_give_the_density():
    fit = jaxfit.fit(PEAK, y=EXPECTED, edges=WIDE)
    for name, value in TRUTH.items():
        np.testing.assert_allclose(fit.values[name], value, rtol=1e-7)
    np.testing.assert_allclose(fit.best_fit, EXPECTED, rtol=1e-8)
    np.testing.assert_allclose(fit.predict(WIDE), fit.best_fit)
    halves = fit.predict(np.linspace(0, 10, 25))
    np.testing.assert_allclose(halves.reshape(12, 2).sum(axis=1), fit.best_fit)
    parts = fit.components(WIDE)
    assert [*parts] == ["Gaussian over bins", "Constant over bins"]
    np.testing.assert_allclose(sum(parts.values()), fit.best_fit)
    np.testing.assert_allclose(fit["area"].value, 800 * 0.7 * np.sqrt(2 * np.pi))
    # the middles of bins have another width
    middle = jaxfit.fit(PEAK, 0.5 * (WIDE[1:] + WIDE[:-1]), EXPECTED / np.diff(WIDE))
    assert middle.values["width"] > 1.05 * 0.7


def test_errors_and_bands_are_those_of_scipys_integrals():
    counts = RANDOM.poisson(EXPECTED)
    fit = jaxfit.fit(PEAK, None, counts, edges=WIDE, sigma=np.sqrt(EXPECTED))

    def curve(x, height, center, width, c):
        mass = np.diff(scipy.stats.norm.cdf(WIDE, center, width))
        return height * width * np.sqrt(2 * np.pi) * mass + c * np.diff(WIDE)

    p0 = [*TRUTH.values()]
    popt, pcov = scipy.optimize.curve_fit(
        curve, WIDE[1:], counts, p0, sigma=np.sqrt(EXPECTED)
    )
    np.testing.assert_allclose(fit.numbers.x, popt, rtol=1e-5)
    size = np.sqrt(np.outer(np.diag(pcov), np.diag(pcov)))
    np.testing.assert_allclose(fit.covariance / size, pcov / size, atol=1e-4)
    band = fit.confidence_band()
    np.testing.assert_allclose(band.value, fit.best_fit)
    assert fit.confidence_band(WIDE).stderr.shape == (12,)
    assert fit.outliers().shape == (12,)


def test_counts_by_poissons_likelihood():
    """Against minus the log-likelihood of SciPy's integrals, minimised by SciPy."""
    counts = RANDOM.poisson(EXPECTED / 40)
    fit = jaxfit.fit(PEAK, y=counts, edges=WIDE, loss=losses.Poisson())

    def minus_log_likelihood(p):
        height, center, width, c = p
        mass = np.diff(scipy.stats.norm.cdf(WIDE, center, width))
        mean = height * width * np.sqrt(2 * np.pi) * mass + c * np.diff(WIDE)
        return np.sum(mean - counts * np.log(mean))

    start = fit.numbers.x
    for k, error in enumerate(fit.errors.values()):
        for step in (-0.05, 0.05):
            moved = start + step * error * (np.arange(4) == k)
            assert minus_log_likelihood(moved) > minus_log_likelihood(start)
    draws = fit.draws(100)
    assert draws["width"].shape == (100,)
    value, other = fit.log_density(start), fit.log_density(start * 1.01)
    expected = minus_log_likelihood(start * 1.01) - minus_log_likelihood(start)
    np.testing.assert_allclose(value - other, expected, rtol=1e-6)


def test_gaps_and_other_lengths():
    counts = np.where(np.arange(12) == 8, np.nan, EXPECTED)
    fit = jaxfit.fit(PEAK, y=counts, edges=WIDE, nan_policy="omit")
    np.testing.assert_allclose(fit.values["width"], 0.7, rtol=1e-7)
    assert fit.ndata == 11
    masked = jaxfit.fit(PEAK, y=np.ma.masked_invalid(counts), edges=WIDE)
    np.testing.assert_allclose(masked.numbers.x, fit.numbers.x)


def test_functions_of_the_users():
    def density(x, rate):
        assert x.ndim == 1
        return rate * jnp.exp(-rate * x)

    def in_numpy(x, rate):
        return rate * np.exp(-rate * x)

    probabilities = np.diff(scipy.stats.expon.cdf(WIDE, scale=2.0))
    for function in (density, in_numpy):
        fit = jaxfit.fit(function, y=probabilities, edges=WIDE, p0={"rate": 1.0})
        np.testing.assert_allclose(fit.values["rate"], 0.5, rtol=1e-7)


def test_batches_and_what_they_share():
    counts = np.stack([EXPECTED, 2 * EXPECTED, EXPECTED + 5])
    for shared in ((), ("center", "width")):
        fits = jaxfit.fit_batch(PEAK, Y=counts, edges=WIDE, shared=shared)
        np.testing.assert_allclose(fits["width"], 0.7, rtol=1e-6)
        np.testing.assert_allclose(fits["height"], [800, 1600, 800], rtol=1e-6)
        np.testing.assert_allclose(fits.predict(WIDE), fits.predict(), rtol=1e-12)
        np.testing.assert_allclose(fits.fit(1).values["height"], 1600, rtol=1e-6)


def test_histograms_of_two_coordinates():
    sides = np.linspace(-2, 3, 8), np.linspace(0, 5, 10)
    spot = models.Gaussian2D() + models.Constant()
    truth = {"height": 90.0, "center_x": 0.4, "center_y": 2.3, "width": 0.9, "c": 3.0}
    expected = np.asarray(Binned(spot).evaluate(coordinates_of(sides), truth))
    mass = [
        np.diff(scipy.stats.norm.cdf(side, center, 0.9))
        for side, center in zip(sides, (0.4, 2.3), strict=True)
    ]
    exact = 90 * 2 * np.pi * 0.81 * np.outer(*mass) + 3 * np.outer(*map(np.diff, sides))
    np.testing.assert_allclose(expected, exact, rtol=1e-7)
    fit = jaxfit.fit(spot, y=expected, edges=sides)
    for name, value in truth.items():
        np.testing.assert_allclose(fit.values[name], value, rtol=1e-6)
    assert fit.best_fit.shape == expected.shape == (7, 9)
    assert fit.predict(tuple(side[:3] for side in sides)).shape == (2, 2)
    assert len(fit.plot().axes) >= 3


def test_a_file_keeps_bins(tmp_path):
    fit = jaxfit.fit(PEAK, y=RANDOM.poisson(EXPECTED), edges=WIDE)
    fit.save(tmp_path / "fit.npz")
    back = jaxfit.Fit.load(tmp_path / "fit.npz")
    assert back.report() == fit.report()
    assert str(fit).startswith("Gaussian + Constant over bins, ")
    np.testing.assert_allclose(back.predict(WIDE), fit.best_fit)


def test_pictures_have_steps():
    counts = RANDOM.poisson(EXPECTED)
    fit = jaxfit.fit(PEAK, y=counts, edges=WIDE)
    figure = fit.plot()
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert lines["fit"].shape == (24, 2)
    np.testing.assert_allclose(lines["fit"][::2, 0], WIDE[:-1])
    np.testing.assert_allclose(lines["fit"][::2, 1], fit.best_fit)
    fit.plot_residuals()
    fits = jaxfit.fit_batch(PEAK, Y=np.stack([counts, counts]), edges=WIDE)
    assert fits.plot_fits().axes[0].lines[1].get_xydata().shape == (24, 2)


LINE = models.Linear()
WRONG = {
    "no y": ({"edges": WIDE}, TypeError, "y is missing. Give fit(model, y=counts"),
    "x too": ({"x": WIDE, "y": EXPECTED, "edges": WIDE}, TypeError, "Leave x out"),
    "length": (
        {"y": EXPECTED, "edges": WIDE[1:]},
        ValueError,
        "edges are of 11 bins, and y has the shape (12,)",
    ),
    "two axes": (
        {"y": EXPECTED, "edges": (WIDE, WIDE)},
        ValueError,
        "edges are of 12 x 12 bins",
    ),
    "order": ({"y": EXPECTED, "edges": WIDE[::-1]}, ValueError, "10 comes before 9.1"),
    "twice": ({"y": [1.0, 2], "edges": [0, 1, 1]}, ValueError, "1 comes before 1, at"),
    "infinite": ({"y": [1.0, 2], "edges": [0, 1, np.inf]}, ValueError, "give finite"),
    "a number": ({"y": [1.0], "edges": 3.0}, ValueError, "a vector of at least two"),
    "dates": (
        {"y": [1.0], "edges": np.array(["2020-01-01", "2020-01-02"], "M8[D]")},
        TypeError,
        "edges are dates",
    ),
    "sigma_x": (
        {"y": EXPECTED, "edges": WIDE, "sigma": 1.0, "sigma_x": 0.1},
        ValueError,
        "sigma_x is given beside edges",
    ),
    "several": (
        {"y": [EXPECTED, EXPECTED[1:]], "edges": WIDE},
        ValueError,
        "arrays of different shapes",
    ),
    "local": (
        {"y": EXPECTED, "edges": WIDE, "local": "slope"},
        ValueError,
        "there is one data set",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_in_words(case):
    settings, kind, words = WRONG[case]
    with pytest.raises(kind) as error:
        jaxfit.fit(LINE, **settings)
    assert words in str(error.value)
    with pytest.raises(TypeError, match="Y is missing"):
        jaxfit.fit_batch(LINE, EXPECTED)
