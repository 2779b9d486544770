"""Likelihoods row by row: SciPy's distributions, their expectations, their edges."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxfit import losses

MEANS = np.array([0.02, 0.4, 1.0, 2.5, 4.9])
COUNTS = np.array([0.0, 1.0, 3.0, 2.0, 5.0])
VALUES = np.array([0.3, 0.7, 1.9, 2.5, 6.0])
NUMBERS = np.array([5.0, 6.0, 7.0, 8.0, 5.0])  # of trials


def shifted_poisson(count, mean, variance):
    """The logarithm of the density that stands in for counts with noise."""
    y, mu = count + variance, mean + variance
    return y * np.log(mu) - mu - special.gammaln(y + 1)


CASES = {  # a likelihood, observed values, and the log-likelihood by SciPy
    "poisson": (losses.Poisson(), COUNTS, stats.poisson.logpmf),
    "readout": (
        losses.PoissonGaussian(0.7),
        COUNTS - 0.3,
        lambda y, mean: shifted_poisson(y, mean, 0.7),
    ),
    "binomial": (
        losses.Binomial(NUMBERS),
        COUNTS,
        lambda y, mean: stats.binom.logpmf(y, NUMBERS, mean / NUMBERS),
    ),
    "gamma": (
        losses.Gamma(2.5),
        VALUES,
        lambda y, mean: stats.gamma.logpdf(y, 2.5, scale=mean / 2.5),
    ),
    "rice": (
        losses.Rician(0.8),
        VALUES,
        lambda y, mean: stats.rice.logpdf(y, mean / 0.8, scale=0.8),
    ),
    "student": (
        losses.StudentT(0.8, 3.5),
        VALUES,
        lambda y, mean: stats.t.logpdf(y, 3.5, loc=mean, scale=0.8),
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


def each(function):
    """A function of a row, for all rows."""
    return jax.jit(jax.vmap(function))


@EVERY
def test_cost_is_scipys_log_likelihood(name):
    likelihood, observed, log_density = CASES[name]
    cost = likelihood.cost(jnp.asarray(MEANS), jnp.asarray(observed))
    total = cost + likelihood.constant(jnp.asarray(observed))
    np.testing.assert_allclose(total, -log_density(observed, MEANS), rtol=1e-12)


@EVERY
def test_a_deviance_is_zero_at_best(name):
    likelihood, observed, _ = CASES[name]
    y = jnp.asarray(np.maximum(observed, 0.01))
    best = likelihood.cost(y, y)
    assert likelihood.is_deviance == (name != "rice")
    if likelihood.is_deviance:
        np.testing.assert_allclose(best, 0, atol=1e-16)


def by_the_mean(log_density, observed, step=1e-3):
    """First and second derivatives of minus a log-likelihood: five points."""
    f = [-log_density(observed, MEANS + k * step) for k in (-2, -1, 0, 1, 2)]
    return (
        (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * step),
        (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * step**2),
    )


@EVERY
def test_slopes_and_second_derivatives(name):
    """By themselves, by JAX's derivatives, and by differences of SciPy's values."""
    likelihood, observed, log_density = CASES[name]
    mean, y = jnp.asarray(MEANS), jnp.asarray(observed)
    slope = likelihood.slope(mean, y)
    total = jax.jit(lambda mean, y: jnp.sum(likelihood.cost(mean, y)))
    np.testing.assert_allclose(slope, jax.grad(total)(mean, y), rtol=1e-12, atol=1e-14)
    first, second = by_the_mean(log_density, observed)
    curvature = jnp.diagonal(jax.hessian(total)(mean, y))
    inner = slice(1, None)  # differences are rough beside a mean of 0.02
    np.testing.assert_allclose(slope[inner], first[inner], rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(curvature[inner], second[inner], rtol=1e-5, atol=1e-6)
    by_slope = jax.jvp(lambda mean: likelihood.slope(mean, y), (mean,), (mean * 0 + 1,))
    np.testing.assert_allclose(curvature, by_slope[1], rtol=1e-11, atol=1e-12)
    mixed = jax.jacfwd(jax.grad(total), 1)(mean, y)
    across = jax.jvp(lambda y: likelihood.slope(mean, y), (y,), (y * 0 + 1,))[1]
    np.testing.assert_allclose(jnp.diagonal(mixed), across, rtol=1e-11, atol=1e-12)


@EVERY
def test_terms(name):
    """Residual times root is the slope, the root's square the expected curvature."""
    likelihood, observed, _ = CASES[name]
    mean, y = jnp.asarray(MEANS), jnp.asarray(observed)
    terms = jax.jit(lambda mean, y: likelihood.evaluate(mean, y, np.inf)[:3])(mean, y)
    terms = losses.LikelihoodTerms(*terms)
    np.testing.assert_allclose(terms.cost, likelihood.cost(mean, y), rtol=1e-14)
    product = terms.residual * terms.root
    np.testing.assert_allclose(product, likelihood.slope(mean, y), rtol=1e-13)
    curvature = likelihood.curvature(mean, y)
    np.testing.assert_allclose(terms.root**2, curvature, rtol=1e-13)
    single = likelihood.evaluate(mean.astype("f4"), y.astype("f4"), np.inf)[:3]
    assert {term.dtype for term in single} == {np.dtype("f4")}
    for low, high in zip(single, terms[:3], strict=True):
        np.testing.assert_allclose(low, high, rtol=2e-5, atol=1e-6)


def expectations(name, likelihood, mean, row):
    """E[y], Var[y], E[slope²] at one mean, by a sum or a quadrature."""
    at = jnp.asarray(mean)

    def moments(y, weights):
        slope = np.asarray(likelihood.slope(at, jnp.asarray(y)))
        expected = np.sum(weights * y)
        spread = np.sum(weights * (y - expected) ** 2)
        return expected, spread, np.sum(weights * slope**2)

    if name in ("poisson", "binomial"):
        y = np.arange(0.0, 60.0 if name == "poisson" else NUMBERS[row] + 1)
        law = stats.poisson if name == "poisson" else stats.binom
        numbers = (mean,) if name == "poisson" else (NUMBERS[row], mean / NUMBERS[row])
        return moments(y, law.pmf(y, *numbers))
    # a change of variable y = y(t) makes trapezoids of t exact
    t = np.linspace(-6, 6, 2001)
    if name == "student":
        y, dy = mean + np.sinh(3 * t), 3 * np.cosh(3 * t)
        density = stats.t.pdf(y, 3.5, mean, 0.8)
    else:
        y, dy = np.exp(np.sinh(t) - 1), np.exp(np.sinh(t) - 1) * np.cosh(t)
        if name == "gamma":
            density = stats.gamma.pdf(y, 2.5, scale=mean / 2.5)
        else:
            density = stats.rice.pdf(np.minimum(y, 30), mean / 0.8, scale=0.8)
            density = np.where(y < 30, density, 0)
    usable = density > 0
    weights = density * dy * (t[1] - t[0])
    return moments(y[usable], weights[usable])


@pytest.mark.parametrize("name", ["poisson", "binomial", "gamma", "rice", "student"])
def test_expectations(name):
    """The expected curvature is the expectation of the squared slope."""
    likelihood, observed, _ = CASES[name]
    mean = jnp.asarray(MEANS)
    curvature = likelihood.curvature(mean, jnp.asarray(observed))
    expected, variance = likelihood.expected(mean), likelihood.variance(mean)
    for row in range(len(MEANS)):
        one = likelihood
        if name == "binomial":
            one = losses.Binomial(NUMBERS[row])
        moments = expectations(name, one, MEANS[row], row)
        numbers = [expected[row], variance[row], curvature[row]]
        np.testing.assert_allclose(numbers, moments, rtol=1e-8, err_msg=str(row))


def test_expected_curvature_of_magnitudes():
    """At all signal-to-noise ratios, against quadrature; it goes to 1/sigma²."""
    a = np.array([1e-4, 0.03, 0.5, 1.3, 2.0, 3.7, 6.0, 11.0, 30.0])
    nodes, weights = np.polynomial.legendre.leggauss(120)
    low, high = np.maximum(a - 11, 0), a + 11
    half = ((high - low) / 2)[:, None]
    m = low[:, None] + half * (nodes + 1)
    z = m * a[:, None]
    score = a[:, None] - m * special.ive(1, z) / special.ive(0, z)
    density = m * np.exp(-((m - a[:, None]) ** 2) / 2) * special.ive(0, z)
    information = np.sum(weights * half * density * score**2, axis=1)
    one = losses.Rician(1.0)
    here = one.curvature(jnp.asarray(a), jnp.asarray(a))
    np.testing.assert_allclose(here, information, rtol=1e-10)
    far = jnp.array([1e3, 1e8])
    np.testing.assert_allclose(one.curvature(far, far), 1 - 0.5 / far**2, rtol=1e-10)


def test_magnitudes_near_zero():
    """The cost is even; residual and root have limits, and so have all derivatives."""
    sigma = 0.7
    likelihood = losses.Rician(sigma)
    y = jnp.array([0.2, 1.0, 0.2, 1.0, 0.9])
    mean = jnp.array([0.0, 0.0, 1e-9, -1e-9, -2.0])
    terms = likelihood.evaluate(mean, y)
    limit = 1 - y**2 / (2 * sigma**2)
    np.testing.assert_allclose(terms.residual[:4], limit[:4], rtol=1e-12)
    np.testing.assert_allclose(terms.root[:4], mean[:4] / sigma**2, rtol=1e-12)
    np.testing.assert_array_equal(terms.cost, likelihood.cost(-mean, y))
    slope = likelihood.slope(-mean, y)
    np.testing.assert_allclose(slope, -terms.residual * terms.root, rtol=1e-14)
    second = each(jax.grad(jax.grad(likelihood.cost)))(mean, y)[:4]
    np.testing.assert_allclose(second, limit[:4] / sigma**2, rtol=1e-12)


def test_magnitudes_at_all_ratios():
    """Cost and slope against SciPy's Bessel functions, far beyond exp's range too."""
    a = np.geomspace(1e-3, 1e4, 40)
    y = np.abs(a + np.resize([-1.5, 0.3, 1.1, 2.2, -0.4], 40)) + 0.01
    z = a * y
    cost = -np.log(y) + (y - a) ** 2 / 2 - np.log(special.ive(0, z))
    likelihood = losses.Rician(1.0)
    here = likelihood.cost(jnp.asarray(a), jnp.asarray(y))
    np.testing.assert_allclose(here, cost, rtol=1e-13, atol=1e-14)
    slope = a - y * special.ive(1, z) / special.ive(0, z)
    here = likelihood.slope(jnp.asarray(a), jnp.asarray(y))
    np.testing.assert_array_less(np.abs(here - slope), 1e-15 * (1 + 2 * a))


@pytest.mark.parametrize(
    "kind", [losses.Rician, losses.PoissonGaussian, losses.Gamma, losses.Binomial]
)
def test_derivatives_by_numbers_of_a_likelihood(kind):
    """First and second, beside differences; the numbers are traced."""
    mean, y, number, step = 3.0, 2.4, 6.5, 1e-4

    @jax.jit
    def cost(number):
        return kind(number).cost(jnp.array(mean), jnp.array(y))

    number = jnp.array(number)
    first = (cost(number + step) - cost(number - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(cost)(number), first, rtol=1e-6)
    slope = jax.jit(jax.grad(cost))
    second = (slope(number + step) - slope(number - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(slope)(number), second, rtol=1e-6)


def exact_half_deviance(count, mean):
    with localcontext() as context:
        context.prec = 50
        y, mu = Decimal(count), Decimal(mean)
        return float(mu - y + (y * (y / mu).ln() if y else 0))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6, 1e12])
def test_no_digit_is_lost_near_the_mean(size):
    """Half the deviance of Poisson beside fifty digits, on both sides of each join."""
    near = np.geomspace(1e-9, 3, 40)
    mean = np.full(80, size)
    count = size * np.concatenate([1 + near, 1 / (1 + near)])
    exact = [exact_half_deviance(*pair) for pair in zip(count, mean, strict=True)]
    here = losses.Poisson().cost(jnp.asarray(mean), jnp.asarray(count))
    np.testing.assert_allclose(here, exact, rtol=5e-15)
    trials = 3 * size
    both = losses.Binomial(trials).cost(jnp.asarray(mean), jnp.asarray(count))
    is_possible = count < trials
    rest = [
        exact_half_deviance(max(trials - k, 0), trials - size) for k in count.tolist()
    ]
    total = (np.array(exact) + rest)[is_possible]
    np.testing.assert_allclose(both[is_possible], total, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_zeros_of_counts(dtype):
    """A mean of zero with a count of zero: cost 0, slope 1, and all else finite."""
    zero = jnp.zeros(3, dtype)
    least = 1e-10 if dtype == "f8" else 1e-5
    for likelihood in (losses.Poisson(), losses.PoissonGaussian(0), losses.Binomial(4)):
        terms = likelihood.evaluate(zero, zero, np.inf)
        np.testing.assert_array_equal(terms.cost, 0)
        np.testing.assert_allclose(likelihood.slope(zero, zero), 1)
        np.testing.assert_allclose(terms.root**2, 1 / least, rtol=1e-5)
        np.testing.assert_allclose(terms.residual * terms.root, 1, rtol=1e-6)
        limited = likelihood.evaluate(zero, zero)
        assert np.all(limited.limited)
        np.testing.assert_allclose(limited.root**2, 1e3, rtol=1e-2)
        np.testing.assert_allclose(limited.residual * limited.root, 1, rtol=1e-6)
    full = losses.Binomial(4).evaluate(zero + 4, zero + 4)
    np.testing.assert_array_equal(full.cost, 0)
    np.testing.assert_allclose(full.residual * full.root, -1, rtol=1e-6)


def test_derivatives_at_a_count_of_zero():
    """Also by the observed value, whose influence on the slope is -1 / mean."""
    cost = losses.Poisson().cost
    mean, zero = jnp.array([0.0, 1e-3, 2.0]), jnp.zeros(3)
    np.testing.assert_allclose(each(jax.grad(cost))(mean, zero), 1)
    np.testing.assert_allclose(
        each(jax.grad(jax.grad(cost)))(mean, zero), 0, atol=1e-12
    )
    mixed = each(jax.grad(jax.grad(cost), 1))(mean, zero)
    np.testing.assert_allclose(mixed[1:], -1 / mean[1:])
    assert np.isfinite(mixed[0])
    by_observed = each(jax.value_and_grad(cost, 1))(mean, zero)
    twice = each(jax.grad(jax.grad(cost, 1), 1))(mean, zero)
    assert np.isfinite(by_observed).all()
    assert np.isfinite(twice).all()


@pytest.mark.parametrize(
    ("name", "mean", "observed"),
    [
        ("poisson", 0.0, 1.0),
        ("poisson", -1.0, 0.0),
        ("poisson", -1.0, 2.0),
        ("poisson", 1.0, -1.0),
        ("poisson", np.nan, 1.0),
        ("poisson", 1.0, np.nan),
        ("readout", -0.8, 1.0),
        ("binomial", 5.1, 2.0),
        ("binomial", 5.0, 4.0),
        ("binomial", -0.1, 2.0),
        ("binomial", 1.0, 6.0),
        ("gamma", 0.0, 1.0),
        ("gamma", -1.0, 1.0),
        ("gamma", 1.0, 0.0),
        ("rice", 1.0, 0.0),
        ("rice", 1.0, -1.0),
        ("student", np.nan, 1.0),
    ],
)
def test_outside_the_range(name, mean, observed):
    """The cost is no number, which refuses a step."""
    likelihood = losses.Binomial(5.0) if name == "binomial" else CASES[name][0]
    terms = likelihood.evaluate(jnp.array(mean), jnp.array(observed))
    assert not np.isfinite(terms.cost)


def test_whole_numbers_are_counts():
    """Observed integers do, under strict promotion, as do other floating numbers."""
    mean = jnp.asarray(MEANS, "f4")
    whole = losses.Poisson().evaluate(mean, jnp.asarray(COUNTS, "i4"))
    floating = losses.Poisson().evaluate(mean, jnp.asarray(COUNTS, "f8"))
    for one, other in zip(whole[:3], floating[:3], strict=True):
        assert one.dtype == other.dtype == np.dtype("f4")
        np.testing.assert_array_equal(one, other)


class Own(losses.Likelihood):
    """A user's own likelihood: only the cost is given."""

    def cost(self, mean, observed):
        return mean - jax.scipy.special.xlogy(observed, mean)


def test_ones_own():
    """What is left out is derived: slope, expected curvature, variance, terms."""
    mean, y = jnp.asarray(MEANS), jnp.asarray(COUNTS)
    own, poisson = Own(), losses.Poisson()
    np.testing.assert_allclose(own.slope(mean, y), poisson.slope(mean, y), rtol=1e-12)
    np.testing.assert_allclose(own.curvature(mean, y), 1 / mean, rtol=1e-12)
    np.testing.assert_allclose(own.variance(mean), mean, rtol=1e-12)
    terms, known = own.evaluate(mean, y, np.inf), poisson.evaluate(mean, y, np.inf)
    np.testing.assert_allclose(terms.residual, known.residual, rtol=1e-12)
    np.testing.assert_allclose(terms.root, known.root, rtol=1e-12)
    assert own.expected_deviance(MEANS) is None
    np.testing.assert_array_equal(own.constant(y), 0)


class Flat(losses.Likelihood):
    """One whose expected curvature, as derived, is nothing."""

    def cost(self, mean, observed):
        return jnp.abs(mean - observed) * 3


def test_without_a_curvature_the_squared_slope_stands_in():
    terms = Flat().evaluate(jnp.array([0.0, 1.0, 2.0]), jnp.ones(3))
    np.testing.assert_allclose(terms.residual * terms.root, [-3, 3, 3])
    np.testing.assert_allclose(terms.root, 3)


def test_what_is_not_defined_is_said():
    with pytest.raises(NotImplementedError, match="must define cost"):
        losses.Likelihood().cost(jnp.ones(2), jnp.ones(2))
    with pytest.raises(NotImplementedError, match="must define sample"):
        Own().sample(jax.random.key(0), jnp.ones(2))


@pytest.mark.parametrize("mean", [0.0, 1e-3, 0.3, 1.0, 5.0, 20.0, 49.0, 51.0, 200.0])
def test_expected_deviance_of_counts(mean):
    """Beside a sum over all counts, where it is summed and where it is a series."""
    y = np.arange(0.0, mean + 15 * np.sqrt(mean) + 60)
    deviance = 2 * (special.rel_entr(y, mean) - y + mean) if mean else 0 * y
    weights = stats.poisson.pmf(y, mean)
    expected = np.sum(weights * deviance)
    variance = np.sum(weights * (deviance - expected) ** 2)
    here = losses.Poisson().expected_deviance(np.array([mean]))
    np.testing.assert_allclose(here.expectation, expected, rtol=1e-8)
    np.testing.assert_allclose(here.variance, variance, rtol=1e-7)
    shifted = losses.PoissonGaussian(mean / 2).expected_deviance(np.array([mean / 2]))
    np.testing.assert_allclose(shifted, here)


@pytest.mark.parametrize(
    ("trials", "mean"),
    [(1, 0.3), (10, 0), (10, 10), (10, 3.3), (50, 45.0), (900, 290), (1400, 650)],
)
def test_expected_deviance_of_proportions(trials, mean):
    y = np.arange(0.0, trials + 1)
    weights = stats.binom.pmf(y, trials, mean / trials)
    fewer = special.rel_entr(y, mean) + special.rel_entr(trials - y, trials - mean)
    deviance = np.where(weights > 0, 2 * fewer, 0)
    expected = np.sum(weights * deviance)
    variance = np.sum(weights * (deviance - expected) ** 2)
    here = losses.Binomial(trials).expected_deviance(np.array([[mean]]))
    np.testing.assert_allclose(here.expectation, [[expected]], rtol=1e-5)
    np.testing.assert_allclose(here.variance, [[variance]], rtol=1e-4)


@pytest.mark.parametrize("name", ["gamma", "student"])
def test_expected_deviance_in_closed_form(name):
    likelihood, _, log_density = CASES[name]

    def moment(power):
        def weighted(y):
            cost = likelihood.cost(jnp.array([2.0]), jnp.array([y]))
            return (2 * float(cost[0])) ** power * np.exp(log_density(y, 2.0))

        low = 0 if name == "gamma" else -np.inf
        return integrate.quad(weighted, low, np.inf, epsabs=1e-9, limit=80)[0]

    here = likelihood.expected_deviance(np.array([2.0, 2.0]))
    np.testing.assert_allclose(here.expectation, moment(1), rtol=1e-5)
    np.testing.assert_allclose(here.variance, moment(2) - moment(1) ** 2, rtol=1e-4)


@EVERY
def test_samples(name):
    """Their mean and variance, within five standard errors or so."""
    likelihood, number = CASES[name][0], 20_000
    if name == "binomial":
        likelihood = losses.Binomial(8)
    mean = jnp.full(number, 3.0)
    drawn = likelihood.sample(jax.random.key(3), mean)
    assert drawn.dtype == mean.dtype
    assert likelihood.problem_with(drawn) is None
    expected, variance = likelihood.expected(mean)[0], likelihood.variance(mean)[0]
    assert abs(np.mean(drawn) - expected) < 5 * np.sqrt(variance / number)
    if name != "student":  # the fourth moment of which is infinite
        np.testing.assert_allclose(np.var(drawn), variance, rtol=0.08)


@pytest.mark.parametrize(
    ("likelihood", "observed", "words"),
    [
        (
            losses.Poisson(),
            [1, 2, -3],
            r"Poisson: observed\[2\] is -3; .* zero or more",
        ),
        (losses.Poisson(), [[1, np.nan], [np.inf, 2]], r"\[0, 1\] is nan and 1 more"),
        (losses.PoissonGaussian(2.0), [-1, np.nan], r"\[1\] is nan; .* finite"),
        (losses.Binomial([3, 4]), [4, 4], r"observed\[0\] is 4; .* trials"),
        (losses.Gamma(), [1.0, 0.0], r"observed\[1\] is 0.0; .* positive"),
        (losses.Rician(1.0), [1.0, -2.0], r"Rician: observed\[1\] is -2.0"),
        (losses.StudentT(1.0, 3), [1.0, np.inf], r"observed\[1\] is inf; .* finite"),
    ],
)
def test_observed_values_that_cannot_be(likelihood, observed, words):
    problem = likelihood.problem_with(np.array(observed))
    with pytest.raises(ValueError, match=words):
        raise ValueError(problem)
    assert likelihood.problem_with(np.full(2, 2.5)) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.PoissonGaussian(-1.0), "variance is -1.0; .* at least zero"),
        (lambda: losses.Binomial([3, 0]), "Binomial: trials is 0; .* above zero"),
        (lambda: losses.Gamma(0.0), "shape is 0.0"),
        (lambda: losses.Rician(np.nan), "sigma is nan"),
        (lambda: losses.Rician("a"), "sigma is 'a'"),
        (lambda: losses.StudentT(1.0, -1), "df is -1"),
        (lambda: losses.StudentT(np.inf, 1), "scale is inf"),
    ],
)
def test_numbers_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
