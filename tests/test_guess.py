"""Guesses lead to the right minimum: waves on slopes, peaks beside each other."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import models
from jaxfit._programs.memory import Budget
from jaxfit._scipy.observations import Points
from jaxfit.fitting import _guesses, _multistart
from jaxfit.fitting._arguments import problem_from
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.models import _guess as _start

NUMBER = 20


def gaussians(number):
    model = models.Linear(prefix="bg_")
    for k in range(number):
        model = model + models.Gaussian(prefix=f"p{k}_")
    return model


def steep(number, random):
    """A line that rises ten times the size of what stands on it."""
    slope = random.choice([-10.0, 10.0], number)
    return {"bg_slope": slope, "bg_intercept": random.uniform(-5, 5, number)}


def sine(random):
    truth = {
        "amplitude": random.uniform(0.5, 2, NUMBER),
        "frequency": random.uniform(0.06, 3, NUMBER),
        "phase": random.uniform(-3, 3, NUMBER),
    }
    return np.sort(random.uniform(0, 10, 150)), truth | steep(NUMBER, random), 0.1


def damped_sine(random):
    x, truth, _ = sine(random)
    truth["frequency"] = random.uniform(0.4, 3, NUMBER)
    truth["rate"] = random.uniform(0.05, 0.5, NUMBER)
    return x, truth, 0.03


def shoulder(random):
    """Two peaks 2.4 widths apart, one half as high as the other."""
    width, center = random.uniform(0.5, 1.5, NUMBER), random.uniform(4, 6, NUMBER)
    height = random.uniform(1, 5, NUMBER)
    truth = {"p0_height": height, "p0_center": center, "p0_width": width}
    truth |= {
        "p1_height": 0.5 * height,
        "p1_center": center + 2.4 * width,
        "p1_width": width,
    }
    return np.linspace(0, 20, 150), truth | steep(NUMBER, random), 0.02


def crowd(random):
    """Five peaks from 2.5 to 6 widths apart."""
    center = 3 + np.cumsum(random.uniform(2.5, 6, (NUMBER, 5)), axis=1)
    truth = {}
    for k in range(5):
        truth[f"p{k}_height"] = random.uniform(1, 4, NUMBER)
        truth[f"p{k}_center"] = center[:, k]
        truth[f"p{k}_width"] = random.uniform(0.8, 1.2, NUMBER)
    return np.linspace(0, 36, 300), truth | steep(NUMBER, random), 0.04


LINE = models.Linear(prefix="bg_")


@pytest.mark.parametrize(
    ("model", "simulated"),
    [
        (models.Sine() + LINE, sine),
        (models.DampedSine() + LINE, damped_sine),
        (gaussians(2), shoulder),
        (gaussians(5), crowd),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_fits_from_the_guess_end_where_those_from_the_truth_would(model, simulated):
    random = np.random.default_rng(0)
    x, truth, noise = simulated(random)
    wrong = []
    for k in range(NUMBER):
        exact = np.asarray(
            model(x, {name: values[k] for name, values in truth.items()})
        )
        error = noise * random.normal(size=x.size)
        try:
            fit = jaxfit.fit(model, x, np.asarray(exact) + error)
        except jaxfit.FitError:
            wrong.append(k)
            continue
        if fit.chi_square > 1.05 * np.sum(error**2):
            wrong.append(k)
    assert len(wrong) <= 1


def test_sixteen_peaks_have_their_places():
    center = np.linspace(5, 110, 16) + np.random.default_rng(1).uniform(-1, 1, 16)
    height = np.random.default_rng(2).uniform(1, 4, 16)
    x = np.linspace(0, 115, 600)
    y = height @ np.exp(-0.5 * (x - center[:, None]) ** 2) + 3 - 0.2 * x
    y = y + 0.05 * np.random.default_rng(3).normal(size=x.size)
    guess = gaussians(16).guess(x, y)
    found = np.sort([guess[f"p{k}_center"] for k in range(16)])
    np.testing.assert_allclose(found, center, atol=0.2)


def test_guesses_by_a_program_in_chunks_are_those_of_numpy(monkeypatch):
    model = models.Gaussian() + models.Constant()
    x = np.linspace(0, 10, 41)
    height = np.random.default_rng(0).uniform(1, 2, 9)
    y = height[:, None] * np.exp(-0.5 * (x - 4) ** 2)
    problem, _ = problem_from(model)
    cases = DataSet(Points(x, y, None), None, {})
    axes = Axes(sigma=None, valid=None)
    by_numpy = _guesses.start_vectors(problem, cases, axes)
    np.testing.assert_allclose(by_numpy[:, 0], height, rtol=1e-3)
    monkeypatch.setattr(_start, "GUESSES_IN_NUMPY", 0)
    monkeypatch.setattr(_guesses, "GUESSES", 2 * [Budget(8 * 3 * 44, 1, 64)])
    monkeypatch.setattr(
        _guesses, "padded_length", lambda problem, points, is_for_few: points
    )
    by_program = _guesses.start_vectors(problem, cases, axes)
    np.testing.assert_allclose(by_program, by_numpy, rtol=1e-6, atol=1e-6)


def test_further_starts_are_guesses_from_parts_of_the_data():
    x = jnp.linspace(0, 10, 40)
    valid = np.arange(40) != 7
    problem, _ = problem_from(models.Gaussian() + models.Constant())
    case = DataSet(Points(x, x, None), valid, {})
    parts = _multistart._parts(problem, case, 8, seed=0)
    assert parts.shape == (8, 40)
    np.testing.assert_array_equal(parts[0], valid)
    assert not parts[:, 7].any()
    assert len(np.unique(parts, axis=0)) == 8
    assert (parts.sum(axis=1) >= 15).all()
    given = case._replace(starts=dict.fromkeys(problem.varied, 1.0))
    assert len(_multistart._parts(problem, given, 8, seed=0)) == 1
