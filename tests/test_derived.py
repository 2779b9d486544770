"""Fits far from x = 0: parameters, what is derived from them, and all their errors."""

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxfit
from jaxfit.fitting._arguments import problem_from
from jaxfit.fitting._problem import from_middle, starts_about
from jaxfit.models import (
    BiExponential,
    Constant,
    DampedSine,
    Exponential,
    Gaussian,
    Gompertz,
    Linear,
    Polynomial,
    Quadratic,
    Sine,
    Step,
    StretchedExponential,
)

NEAR = np.linspace(-43200.0, 43200.0, 100)  # a day in seconds
MIDDLE = 1.7e9
FAR = MIDDLE + NEAR  # unix time
NOISE = 0.01 * np.random.default_rng(5).standard_normal(NEAR.shape)

PLACES = ("center", "root", "vertex")
CURVES = {  # model, the parameters it had, those that another origin changes
    "parabola": (Quadratic(), [1e-9, -2e-5, 0.109], ["b", "c"]),
    "quartic": (
        Polynomial(degree=4),
        [1.0, -3e-5, 6e-10, -6e-15, 6e-20],
        ["c0", "c1", "c2", "c3"],
    ),
    "decay": (Exponential(), [1.0, 3e-5], ["amplitude"]),
    "wave": (Sine(), [1.0, 1 / 7000, 0.4], ["phase"]),
    "damped": (DampedSine(), [1.0, 1 / 7000, 0.4, 3e-5], ["amplitude", "phase"]),
    "peak": (Gaussian() + Linear(), [1.0, 1000.0, 5000.0, 1e-5, 0.1], ["intercept"]),
}
MOVED = [
    *(model for model, _, _ in CURVES.values()),
    *(BiExponential(), Constant(), Gompertz(), Step() + Linear(prefix="b_")),
    (Gaussian() + Linear()) * Exponential(),
]


def data(name):
    model, truth, _ = CURVES[name]
    return np.asarray(model(NEAR, dict(zip(model.names, truth, strict=True)))) + NOISE


def everything(fit):
    return {**fit.params, **fit.derived}


def reference(name, **fixed):
    """Values, and covariance of parameters and what is derived, by SciPy near zero."""
    model, truth, _ = CURVES[name]
    size = np.abs(truth)
    own = np.array([n not in fixed for n in model.names])
    held = np.array([fixed.get(n, 0.0) for n in model.names]) / size

    @jax.jit
    def curve(q):
        return model(NEAR, dict(zip(model.names, q * size, strict=True)))

    def whole(free):
        q = held.copy()
        q[own] = free
        return q

    y, slope = data(name), jax.jit(jax.jacfwd(curve))
    found = scipy.optimize.least_squares(
        lambda free: np.asarray(curve(whole(free))) - y,
        np.sign(truth)[own],
        lambda free: np.asarray(slope(whole(free)))[:, own],
        **dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15),
    )
    q = whole(found.x)
    gram = np.linalg.inv(slope(q).T @ slope(q))
    covariance = gram * 2 * found.cost / (len(y) - len(q)) * np.outer(size, size)
    parameters = dict(zip(model.names, q * size, strict=True))

    def parts(p):
        values = [p[n] for n in model.names]
        return jnp.stack([*values, *model.derived(p).values()])

    rows = jax.jacfwd(parts)(parameters)
    rows = np.stack([rows[n] for n in model.names], axis=1)
    derived = {n: float(v) for n, v in model.derived(parameters).items()}
    return parameters | derived, rows @ covariance @ rows.T


@pytest.mark.parametrize("model", MOVED, ids=lambda model: model.label)
def test_a_moved_curve_is_the_same(model):
    x = np.linspace(1.0, 3.0, 9)
    p = {name: 0.3 + 0.21 * k for k, name in enumerate(model.names)}
    moved = p | model.moved(p, 2.5)
    np.testing.assert_allclose(model(x - 2.5, moved), model(x, p), rtol=1e-12)
    back = moved | model.moved(moved, -2.5)
    there = {k: back[k] - p[k] for k in p}
    assert all(abs(math.remainder(d, 2 * math.pi)) < 1e-13 for d in there.values())


def test_a_curve_that_hangs_on_zero_is_not_moved():
    for model in (StretchedExponential(), Linear() + (lambda x, a: a * x)):
        assert model.moved(dict.fromkeys(model.names, 1.0), 2.5) is None


@pytest.mark.parametrize("name", CURVES)
def test_far_from_zero_as_near_it(name):
    model, _, changed = CURVES[name]
    values, covariance = reference(name)
    fit = jaxfit.fit(model, FAR, data(name))
    assert fit.problem.origin == MIDDLE
    expected = model(NEAR, {n: values[n] for n in model.names})
    np.testing.assert_allclose(fit.best_fit, expected, atol=1e-7)
    for k, (own, value) in enumerate(values.items()):
        if own in changed:
            continue
        found, error = everything(fit)[own], math.sqrt(covariance[k, k])
        there = found.value - (MIDDLE if own in PLACES else 0.0)
        assert there == pytest.approx(value, abs=1e-6 * (abs(value) + error)), own
        assert found.stderr == pytest.approx(error, rel=1e-6), own


@pytest.mark.parametrize("name", ["parabola", "decay"])
def test_a_batch_far_from_zero(name):
    model, y = CURVES[name][0], data(name)
    fit = jaxfit.fit(model, FAR, y)
    batch = jaxfit.fit_batch(model, FAR, np.stack([y, y]))
    np.testing.assert_allclose(batch.predict()[1], fit.best_fit, rtol=1e-9)
    values, errors = batch.values | batch.derived, batch.errors | batch.derived_errors
    for own, one in everything(fit).items():
        value = one.value if one.determined else np.nan
        np.testing.assert_allclose(values[own], value, rtol=1e-6)
        np.testing.assert_allclose(errors[own], one.stderr, rtol=1e-6)
    if name == "decay":  # its amplitude at zero is none that a fit could start from
        again = batch.fit(1)
        assert again.chi_square == pytest.approx(fit.chi_square, rel=1e-9)


def test_a_parabola_at_zero_by_long_numbers():
    """b and c as they follow from the centred fit of NumPy, and their errors."""
    y = data("parabola")
    columns = np.stack([NEAR**2, NEAR, np.ones_like(NEAR)], axis=1)
    scale = np.array([1e9, 1e4, 1.0])
    found = np.linalg.lstsq(columns / scale, y)[0]
    left = y - columns / scale @ found
    gram = np.linalg.inv((columns / scale).T @ (columns / scale))
    covariance = gram * (left @ left) / (len(y) - 3) / np.outer(scale, scale)
    a, b, c = (found / scale).astype(np.longdouble)
    m = np.longdouble(MIDDLE)
    slope = np.array([[1, 0, 0], [-2 * m, 1, 0], [m * m, -m, 1]], np.longdouble)
    there = slope @ covariance.astype(np.longdouble) @ slope.T
    fit = jaxfit.fit(Quadratic(), FAR, y)
    expected = np.array([a, b - 2 * a * m, c - b * m + a * m * m], float)
    np.testing.assert_allclose(list(fit.values.values()), expected, rtol=1e-9)
    np.testing.assert_allclose(fit.covariance, there.astype(float), rtol=1e-8)
    errors = np.sqrt(np.diagonal(there)).astype(float)
    np.testing.assert_allclose(list(fit.errors.values()), errors, rtol=1e-8)
    band = fit.confidence_band(FAR[:3])
    row = columns[:3]
    stderr = np.sqrt(np.sum(row @ covariance * row, axis=1))
    np.testing.assert_allclose(band.stderr, stderr, rtol=1e-8)
    np.testing.assert_allclose(band.value, fit.best_fit[:3], rtol=1e-12)


def test_a_phase_at_zero():
    values, covariance = reference("wave")
    fit = jaxfit.fit(Sine(), FAR, data("wave"))
    turns = np.longdouble(values["frequency"]) * np.longdouble(MIDDLE)
    expected = values["phase"] - 2 * math.pi * float(turns - np.round(turns))
    far = fit["phase"]
    away = math.remainder(far.value - expected, 2 * math.pi)
    assert away == pytest.approx(0, abs=1e-6 * far.stderr)
    weights = np.array([0, -2 * math.pi * MIDDLE, 1])
    error = math.sqrt(weights @ covariance[:3, :3] @ weights)
    assert far.stderr == pytest.approx(error, rel=1e-6)


def test_an_amplitude_at_zero_beyond_all_numbers(tmp_path):
    fit = jaxfit.fit(Exponential(), FAR, data("decay"))
    assert fit["amplitude"].value == math.inf == fit["amplitude"].stderr
    assert fit.determined == {"amplitude": False, "rate": True}
    assert "beyond floating point" in str(fit)
    assert fit.intervals()["amplitude"] == (-math.inf, math.inf)
    fit.save(tmp_path / "fit.npz")
    for same in (jaxfit.Fit.load(tmp_path / "fit.npz"), copy.deepcopy(fit)):
        assert same.values == fit.values
        np.testing.assert_array_equal(same.predict(FAR[:4]), fit.predict(FAR[:4]))
    profile = fit.intervals("profile")["rate"]
    np.testing.assert_allclose(profile, fit.intervals()["rate"], rtol=1e-4)


PEAK = {"height": 1.0, "center": MIDDLE, "width": 5e3, "slope": 0.0, "intercept": 0.2}
ASKED = {  # of a peak on a line; what that is about the middle, or None: not moved
    "bounds of a place": (
        {"bounds": {"center": (MIDDLE - 500, MIDDLE + 900)}},
        {"bounds": {"center": (-500, 900)}},
    ),
    "a place held": ({"fixed": {"center": MIDDLE + 900}}, {"fixed": {"center": 900.0}}),
    "all starts": (
        {"p0": PEAK | {"slope": 1e-5, "intercept": 0.2 - 1e-5 * MIDDLE}},
        {"p0": PEAK | {"center": 0.0, "slope": 1e-5}},
    ),
    "start of a place": ({"p0": {"center": MIDDLE}}, {"p0": {"center": 0.0}}),
    "a bounded constant": ({"bounds": {"intercept": (-1e6, 1e6)}}, None),
    "a held constant": ({"fixed": {"intercept": -16988.0}}, None),
    "a start of it alone": ({"p0": {"intercept": -17000.0}}, None),
    "a tie": ({"tie": {"height": lambda p: p["width"] / 5e3}}, None),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_of_parameters_holds_exactly(name):
    settings, moved = ASKED[name]
    problem, given = problem_from(CURVES["peak"][0], **settings)
    about = from_middle(problem, given, FAR)
    assert (about.origin is None) == (moved is None)
    if moved is None:
        return
    expected, there = problem_from(CURVES["peak"][0], **moved)
    np.testing.assert_array_equal(about.bounds, expected.bounds)
    assert about.counted(about.fixed) == expected.fixed
    starts = starts_about(about, given)
    assert starts.keys() == there.keys()
    for own, value in there.items():
        np.testing.assert_allclose(starts[own], value, atol=1e-11)


def test_a_bounded_peak_on_a_line():
    fit = jaxfit.fit(
        *(CURVES["peak"][0], FAR, data("peak")),
        bounds={"center": (MIDDLE - 500, MIDDLE + 900)},
        p0={"center": MIDDLE},
    )
    values, covariance = reference("peak", center=900.0)
    assert fit["center"].value == fit["center"].upper == MIDDLE + 900
    assert (fit["center"].at_bound, fit["center"].start) == (1, MIDDLE)
    for k, own in enumerate(["height", "center", "width", "slope"]):
        error = math.sqrt(covariance[k, k])
        assert fit[own].stderr == pytest.approx(error, rel=1e-6)
        if own != "center":
            assert fit[own].value == pytest.approx(values[own], abs=1e-6 * error)


def test_a_prior_is_one_of_the_parameter_at_zero():
    y = 1e-5 * NEAR + 0.3 + NOISE
    prior = {"intercept": (-17000.0, 10.0)}
    fit = jaxfit.fit(Linear(), FAR, y, sigma=0.01, prior=prior)
    assert fit.problem.origin == MIDDLE
    # the same rows, of x from the middle: the prior is one of intercept - slope MIDDLE
    rows = np.stack([NEAR, np.ones_like(NEAR)], axis=1) / 0.01
    rows = np.concatenate([rows, [[-MIDDLE / 10, 0.1]]])
    seen = np.concatenate([y / 0.01, [-1700.0]])
    slope, intercept = np.linalg.lstsq(rows, seen)[0]
    assert fit["slope"].value == pytest.approx(slope, rel=1e-8)
    assert fit["intercept"].value == pytest.approx(intercept - slope * MIDDLE, rel=1e-8)


def test_guesses_far_from_zero():
    for name in ("parabola", "wave"):
        model, y = CURVES[name][0], data(name)
        near, far = model.guess(NEAR, y), model.guess(FAR, y)
        there = {**far, **model.moved(far, MIDDLE)}
        np.testing.assert_allclose(
            [there[n] for n in model.names], [near[n] for n in model.names], rtol=1e-4
        )
