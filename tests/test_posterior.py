"""The log density for samplers: against formulas in NumPy, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import losses, models

X = np.linspace(0.0, 8.0, 41)
NOISE = 0.1 * np.cos(np.arange(41.0) ** 2)
Y = 2 * np.exp(-0.5 * ((X - 4) / 0.8) ** 2) + 0.5 + NOISE
PEAK = models.Gaussian() + models.Constant()
GAP = np.where(np.arange(41) % 7 == 3, np.nan, X)
SETTINGS = {
    "plain": {},
    "absolute": {"absolute_sigma": True},
    "a loss": {"loss": losses.Cauchy(2.0)},
    "priors": {
        "absolute_sigma": True,
        "prior": {"c": (0.4, 0.05), ("width", "center"): ([1, 4], [[9, 1], [1, 4]])},
    },
    "a tie": {"tie": {"c": lambda p: p["height"] / 4}},
    "fixed": {"fixed": {"width": 0.8}},
    "gaps": {"nan_policy": "omit", "x": GAP, "absolute_sigma": True},
    "a covariance": {
        "absolute_sigma": True,
        "sigma": 0.01 * (np.eye(41) + 0.4 * np.eye(41, k=1) + 0.4 * np.eye(41, k=-1)),
    },
}


def fitted(name):
    settings = {"x": X, "y": Y, "sigma": 0.1, **SETTINGS[name]}
    return jaxfit.fit(PEAK, **settings)


def by_hand(name, values, scale):
    """Minus half of chi-square, with NumPy."""
    settings = SETTINGS[name]
    y, x = Y, settings.get("x", X)
    counts = np.isfinite(x)
    rows = np.asarray(PEAK(x[counts], values)) - y[counts]
    if "sigma" in settings:
        rows = np.linalg.solve(np.linalg.cholesky(settings["sigma"]), rows)
    else:
        rows = rows / 0.1
    parts = [rows]
    for key, (mean, spread) in settings.get("prior", {}).items():
        names = key if isinstance(key, tuple) else (key,)
        off = np.array([values[n] for n in names]) - mean
        root = np.linalg.cholesky(spread) if len(names) > 1 else np.eye(1) * spread
        parts.append(np.linalg.solve(root, off))
    z = np.concatenate(parts) ** 2
    loss = settings.get("loss")
    rho = z if loss is None else 4 * np.log1p(z / 4)
    return -0.5 * np.sum(rho) / scale


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_minus_half_of_chi_square_over_the_variance(name):
    fit = fitted(name)
    density = fit.log_density
    scale = 1.0 if fit.absolute_sigma else fit.reduced_chi_square
    near = fit.numbers.x * 1.02 + 0.01
    for x in (fit.numbers.x, near):
        value = density(x)
        expected = by_hand(name, fit.problem.parameters(x), scale)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        assert density(dict(zip(fit.varied, x, strict=True))) == value
    np.testing.assert_allclose(jax.jit(density)(near), value, rtol=1e-12)
    many = jax.vmap(density)(np.stack([fit.numbers.x, near]))
    np.testing.assert_allclose(many, [density(fit.numbers.x), value], rtol=1e-12)


@pytest.mark.parametrize("name", ["a loss", "priors", "a tie", "gaps"])
def test_its_derivatives_are_those_of_the_formula(name):
    fit = fitted(name)
    near = fit.numbers.x * 1.02 + 0.01
    slope = jax.jit(jax.grad(fit.log_density))(near)
    step = 1e-6

    def moved(k, by):
        x = near.copy()
        x[k] += by
        return fit.log_density(x)

    ks = range(len(near))
    expected = [(moved(k, step) - moved(k, -step)) / (2 * step) for k in ks]
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-4)


def test_its_curvature_is_the_covariance():
    x = np.linspace(0.0, 5.0, 15)
    fit = jaxfit.fit(models.Linear(), x, 1 + 0.7 * x + 0.2 * np.cos(9 * x))
    curvature = jax.hessian(fit.log_density)(fit.numbers.x)
    np.testing.assert_allclose(np.linalg.inv(-curvature), fit.covariance, rtol=1e-8)


def test_outside_of_bounds_it_is_minus_infinity():
    fit = jaxfit.fit(
        PEAK, X, Y, bounds={"c": (0.0, 1.0)}, tie={"width": lambda p: p["c"] + 0.3}
    )
    inside = dict(zip(fit.varied, fit.numbers.x, strict=True))
    for name, value in {"c": 1.1, "height": np.nan}.items():
        outside = {**inside, name: value}
        assert fit.log_density(outside) == -np.inf
        slope = jax.grad(fit.log_density)(outside)
        assert all(float(part) == 0 for part in slope.values())
    free = jaxfit.fit(PEAK, X, Y, tie={"width": lambda p: p["c"] + 0.3})
    x = dict(zip(free.varied, free.numbers.x, strict=True))
    assert free.log_density(x) > -np.inf
    assert free.log_density({**x, "c": -0.4}) == -np.inf  # the width is bounded too


def test_far_from_zero_parameters_are_those_at_zero():
    line = models.Linear()
    near = jaxfit.fit(line, X, Y, absolute_sigma=True)
    far = jaxfit.fit(line, X + 1e4, Y, absolute_sigma=True)
    assert far.problem.origin is not None
    slope, intercept = near.values["slope"] + 0.1, near.values["intercept"] - 0.2
    values = {"slope": slope, "intercept": intercept}
    moved = {"slope": slope, "intercept": intercept - 1e4 * slope}
    expected = near.log_density(values)
    np.testing.assert_allclose(far.log_density(moved), expected, rtol=1e-7)


def test_several_data_sets_and_complex_ones():
    lines = jaxfit.fit(
        models.Linear(), [X, X[:9]], [Y, Y[:9]], local="slope", absolute_sigma=True
    )
    value = lines.log_density(lines.numbers.x)
    np.testing.assert_allclose(value, -0.5 * lines.chi_square, rtol=1e-12)

    def wave(x, a, b):
        return jax.lax.complex(a * jnp.cos(b * x), a * jnp.sin(b * x))

    z = jaxfit.fit(wave, X, 2 * np.exp(0.5j * X) + NOISE, p0=[1.5, 0.49])
    value = z.log_density(z.numbers.x) * z.reduced_chi_square
    np.testing.assert_allclose(value, -0.5 * z.chi_square, rtol=1e-12)


def test_a_model_in_numpy_and_one_on_the_host():
    def decay(x, a, b):
        return a * np.exp(-b * x)

    y = 3 * np.exp(-0.4 * X) + NOISE
    for settings in ({}, {"host": True}):
        fit = jaxfit.fit(decay, X, y, absolute_sigma=True, p0=[1, 1], **settings)
        value = fit.log_density(fit.numbers.x)
        np.testing.assert_allclose(value, -0.5 * fit.chi_square, rtol=1e-9)


def test_a_sampler_finds_the_posterior():
    """Metropolis by `jax.lax.scan`: the moments of a linear model's are known."""
    fit = jaxfit.fit(models.Linear(), X, Y, sigma=1.0, absolute_sigma=True)
    density, root = fit.log_density, np.linalg.cholesky(fit.covariance)

    @jax.jit
    def chain(key):
        def step(state, key):
            x, value = state
            a, b = jax.random.split(key)
            new = x + 1.2 * root @ jax.random.normal(a, (2,))
            new_value = density(new)
            is_kept = jnp.log(jax.random.uniform(b)) < new_value - value
            kept = jnp.where(is_kept, new, x), jnp.where(is_kept, new_value, value)
            return kept, kept[0]

        start = jnp.asarray(fit.numbers.x), density(jnp.asarray(fit.numbers.x))
        return jax.lax.scan(step, start, jax.random.split(key, 5000))[1]

    samples = np.concatenate(jax.vmap(chain)(jax.random.split(jax.random.key(1), 8)))
    error = np.sqrt(np.diag(fit.covariance))
    np.testing.assert_allclose(samples.mean(0), fit.numbers.x, atol=0.05 * error.max())
    np.testing.assert_allclose(np.cov(samples.T), fit.covariance, rtol=0.08)


def test_errors_in_words():
    line = models.Linear()
    fit = jaxfit.fit(line, X, Y)
    with pytest.raises(ValueError, match=r"shape \(3,\).* use jax.vmap"):
        fit.log_density(np.ones(3))
    with pytest.raises(ValueError, match="has the names slope, b; the parameters that"):
        fit.log_density({"slope": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match="needs the scale of the errors"):
        _ = jaxfit.fit(line, X[:2], Y[:2]).log_density
    both = jaxfit.fit(line, X, Y, sigma=0.1, sigma_x=0.1)
    with pytest.raises(ValueError, match="errors in x"):
        _ = both.log_density
    fits = jaxfit.fit_batch(line, X, np.stack([Y, Y + 1]), shared="slope")
    with pytest.raises(ValueError, match="one of 2 data sets that share slope"):
        _ = fits.fit(0).log_density
