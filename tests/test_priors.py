"""Priors of one or several parameters: against dense normal equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import losses, models

X = np.linspace(0.0, 5.0, 21)
NOISE = 0.3 * np.cos(np.arange(21.0) ** 2)
Y = 1.0 + 0.7 * X + NOISE
SIGMA = 0.25 + 0.05 * np.sin(X)
MEAN, COVARIANCE = np.array([0.6, 1.3]), np.array([[4e-3, -5e-3], [-5e-3, 9e-3]])
JOINT = {("slope", "intercept"): (MEAN, COVARIANCE)}
LINE = models.Linear()
ORDER = [LINE.names.index(n) for n in ("slope", "intercept")]


def normal_equations(prior_mean, prior_precision):
    """Estimate, covariance and chi-square of a line, in the model's order."""
    columns = {"slope": X, "intercept": np.ones_like(X)}
    jacobian = np.stack([columns[n] for n in LINE.names], axis=1) / SIGMA[:, None]
    gram = jacobian.T @ jacobian + prior_precision
    x = np.linalg.solve(gram, jacobian.T @ (Y / SIGMA) + prior_precision @ prior_mean)
    rest, off = jacobian @ x - Y / SIGMA, x - prior_mean
    return x, np.linalg.inv(gram), rest @ rest + off @ prior_precision @ off


def in_models_order(mean, covariance):
    place = np.argsort(ORDER)
    return mean[place], np.linalg.inv(covariance[np.ix_(place, place)])


@pytest.mark.parametrize("absolute", [True, False])
def test_a_prior_with_a_covariance_is_in_the_normal_equations(absolute):
    x, covariance, chi_square = normal_equations(*in_models_order(MEAN, COVARIANCE))
    fit = jaxfit.fit(LINE, X, Y, sigma=SIGMA, absolute_sigma=absolute, prior=JOINT)
    np.testing.assert_allclose(fit.numbers.x, x, rtol=1e-9)
    np.testing.assert_allclose(fit.chi_square, chi_square, rtol=1e-10)
    assert (fit.ndata, fit.dof) == (21, 21)
    scale = 1.0 if absolute else chi_square / 21
    np.testing.assert_allclose(fit.covariance, covariance * scale, rtol=1e-7)
    assert "Prior: slope = 0.6 ± 0.063, intercept = 1.3 ± 0.095 (with a cov" in str(fit)


def test_a_prior_without_correlation_is_that_of_each():
    both = {("slope", "intercept"): (MEAN, np.diag([0.01, 0.04]))}
    each = {"slope": (0.6, 0.1), "intercept": (1.3, 0.2)}
    mixed = {("intercept",): ([1.3], [[0.04]]), "slope": (0.6, 0.1)}
    fits = [jaxfit.fit(LINE, X, Y, sigma=SIGMA, prior=p) for p in (both, each, mixed)]
    for fit in fits[1:]:
        np.testing.assert_allclose(fit.numbers.x, fits[0].numbers.x, rtol=1e-9)
        np.testing.assert_allclose(fit.covariance, fits[0].covariance, rtol=1e-7)


def test_the_result_of_one_half_is_the_prior_of_the_other():
    settings = {"sigma": SIGMA, "absolute_sigma": True}
    whole = jaxfit.fit(LINE, X, Y, **settings)
    halves = [
        {**settings, "sigma": np.where(np.arange(21) % 2 == k, SIGMA, np.inf)}
        for k in (0, 1)
    ]
    first = jaxfit.fit(LINE, X, Y, **halves[0])
    known = {first.varied: (first.numbers.x, first.covariance)}
    second = jaxfit.fit(LINE, X, Y, prior=known, **halves[1])
    np.testing.assert_allclose(second.numbers.x, whole.numbers.x, rtol=1e-9)
    np.testing.assert_allclose(second.covariance, whole.covariance, rtol=1e-7)
    np.testing.assert_allclose(second.chi_square, whole.chi_square - first.chi_square)


PEAK = models.Gaussian() + models.Constant()
AT = np.linspace(0.0, 8.0, 41)
BUMP = 2.0 * np.exp(-0.5 * ((AT - 4) / 0.8) ** 2) + 0.5 + 0.1 * np.sin(9 * AT)
WIDE = {("width", "center"): ([0.8, 4.1], [[0.01, 0.002], [0.002, 0.02]])}
SETTINGS = {
    "tied": {"tie": {"c": lambda p: p["height"] / 4}},
    "a tied one in it": {
        "tie": {"width": lambda p: p["center"] / 5},
    },
    "fixed": {"fixed": {"c": 0.5}},
    "a fixed one in it": {"fixed": {"width": 0.8}},
    "bounds": {"bounds": {"center": (4.05, 5.0)}},
    "a loss": {"loss": losses.Cauchy(1.0)},
    "a mask": {"nan_policy": "omit"},
}


def chi_square(settings, values):
    """Half the loss and the prior, by hand, twice."""
    y = np.where(np.arange(41) == 3, np.nan, BUMP) if "nan_policy" in settings else BUMP
    rows = (np.asarray(PEAK(AT, values)) - y)[np.isfinite(y)] / 0.1
    ((names, (mean, covariance)),) = WIDE.items()
    off = np.array([values[n] for n in names]) - mean
    rows = np.concatenate([rows, np.linalg.solve(np.linalg.cholesky(covariance), off)])
    loss = settings.get("loss")
    z = rows**2
    return np.sum(z if loss is None else loss.rho(jnp.asarray(z)))


@pytest.mark.parametrize("name", SETTINGS)
def test_with_other_settings(name):
    settings = SETTINGS[name]
    y = np.where(np.arange(41) == 3, np.nan, BUMP) if name == "a mask" else BUMP
    fit = jaxfit.fit(PEAK, AT, y, sigma=0.1, prior=WIDE, **settings)
    np.testing.assert_allclose(fit.chi_square, chi_square(settings, fit.values))
    for k, parameter in enumerate(fit.varied):
        for step in (-1e-3, 1e-3):
            x = fit.numbers.x.copy()
            x[k] += step
            p = fit.params[parameter]
            if p.lower <= x[k] <= p.upper:
                moved = fit.problem.parameters(x)
                assert chi_square(settings, moved) > fit.chi_square


def test_far_from_zero_the_prior_is_one_of_the_parameters_there():
    far = {("slope", "intercept"): ([0.7, -699.0], [[4e-4, -0.4], [-0.4, 410.0]])}
    fit = jaxfit.fit(LINE, X + 1000, Y, sigma=SIGMA, prior=far)
    near = {
        ("slope", "intercept"): (
            [0.7, 1.0],
            [[4e-4, 0.0], [0.0, 410.0 - 2 * 0.4 * 1000 + 4e-4 * 1e6]],
        )
    }
    same = jaxfit.fit(LINE, X, Y, sigma=SIGMA, prior=near)
    np.testing.assert_allclose(fit.values["slope"], same.values["slope"], rtol=1e-7)
    np.testing.assert_allclose(fit.chi_square, same.chi_square, rtol=1e-7)


def test_a_saved_fit_keeps_its_priors(tmp_path):
    prior = {**WIDE, "c": (0.5, 0.2)}
    fit = jaxfit.fit(PEAK, AT, BUMP, sigma=0.1, prior=prior)
    fit.save(tmp_path / "fit.npz")
    back = jaxfit.Fit.load(tmp_path / "fit.npz")
    assert back.report() == fit.report()
    assert "(with a covariance)" in back.report()
    assert len(fit.profile(["width"], 5)[0].values) == 5
    assert jax.tree.all(jax.tree.map(np.array_equal, back.problem, fit.problem))


def test_batches_and_several_data_sets():
    y = np.stack([BUMP, BUMP[::-1]])
    settings = {"sigma": 0.1, "prior": WIDE}
    fits = jaxfit.fit_batch(PEAK, AT, y, **settings)
    for k, one in enumerate(y):
        fit = jaxfit.fit(PEAK, AT, one, **settings)
        np.testing.assert_allclose(fits.numbers.x[k], fit.numbers.x, rtol=1e-7)
        np.testing.assert_allclose(fits.covariance[k], fit.covariance, rtol=1e-6)
        np.testing.assert_allclose(fits.fit(k).numbers.x, fit.numbers.x, rtol=1e-7)
    names = ("width", "center", "c", "height")
    apart = jaxfit.fit(PEAK, [AT, AT], [*y], local=names, **settings)
    np.testing.assert_allclose(apart.chi_square, fits.chi_square.sum())
    assert apart.dof == 2 * (41 + 2) - 8


def test_what_is_shared_counts_once_and_the_rest_given_it():
    """Against one `solve` of all data sets with the joint normal prior of all."""
    t = np.linspace(0.0, 4.0, 15)
    y = np.stack([a * np.exp(-0.8 * t) for a in (2.0, 3.0, 1.5)])
    y = y + 0.05 * np.cos(7 * t + np.arange(3.0)[:, None])

    def decay(x, amplitude, rate):
        return amplitude * jnp.exp(-rate * x)

    mean, covariance = np.array([2.2, 0.7]), np.array([[0.04, 0.012], [0.012, 0.01]])
    prior = {("amplitude", "rate"): (mean, covariance)}
    fits = jaxfit.fit_batch(
        decay, t, y, sigma=0.05, absolute_sigma=True, shared="rate", prior=prior
    )
    # amplitudes that are independent of each other once the rate is known
    along = covariance[0, 1] / covariance[1, 1]
    rest = covariance[0, 0] - along * covariance[0, 1]

    def residual(p, _):
        off = p["rate"] - mean[1]
        return {
            "y": (p["a"][:, None] * jnp.exp(-p["rate"] * t) - y) / 0.05,
            "rate": off / np.sqrt(covariance[1, 1]),
            "a": (p["a"] - mean[0] - along * off) / np.sqrt(rest),
        }

    start = {"a": np.ones(3), "rate": np.float64(1.0)}
    dense = jaxfit.solve(residual, start)
    np.testing.assert_allclose(fits["rate"], dense.x["rate"], rtol=1e-7)
    np.testing.assert_allclose(fits["amplitude"], dense.x["a"], rtol=1e-7)
    errors = dense.stderr(True)
    np.testing.assert_allclose(fits.errors["rate"], errors["rate"], rtol=1e-6)
    np.testing.assert_allclose(fits.errors["amplitude"], errors["a"], rtol=1e-6)
    assert fits.dof == 45 + 1 + 3 - 4


WRONG = {
    "a number": ({3: (1.0, 1.0)}, TypeError, "the name of a parameter, or a tuple"),
    "unknown": ({("slope", "b"): (MEAN, COVARIANCE)}, ValueError, "prior names 'b'"),
    "twice": ({**JOINT, "slope": (0.6, 0.1)}, ValueError, "'slope' twice"),
    "twice in one": ({("slope",) * 2: (MEAN, COVARIANCE)}, ValueError, "twice"),
    "no pair": ({("slope", "intercept"): 3.0}, ValueError, "(means, covariance mat"),
    "means": (
        {("slope", "intercept"): (1.0, COVARIANCE)},
        ValueError,
        "for 2 names give (2,) and (2, 2)",
    ),
    "a matrix": (
        {("slope", "intercept"): (MEAN, [1.0, 2.0])},
        ValueError,
        "a covariance of (2,)",
    ),
    "not symmetric": (
        {("slope", "intercept"): (MEAN, [[1.0, 0.2], [0.1, 1.0]])},
        ValueError,
        "not symmetric",
    ),
    "not definite": (
        {("slope", "intercept"): (MEAN, [[1.0, 2.0], [2.0, 1.0]])},
        ValueError,
        "not positive definite",
    ),
    "a variance": (
        {("slope", "intercept"): (MEAN, [[1.0, 0.0], [0.0, -1.0]])},
        ValueError,
        "must be positive",
    ),
    "not finite": (
        {("slope", "intercept"): ([np.nan, 1.0], COVARIANCE)},
        ValueError,
        "not finite",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_in_words(case):
    prior, kind, words = WRONG[case]
    with pytest.raises(kind) as error:
        jaxfit.fit(LINE, X, Y, sigma=SIGMA, prior=prior)
    assert words in str(error.value)


def test_a_prior_of_local_and_shared_names_is_refused():
    with pytest.raises(ValueError, match="local parameters beside others"):
        jaxfit.fit(LINE, [X, X], [Y, Y], sigma=0.2, local="intercept", prior=JOINT)
