"""A warning where what data sets share is biased by what each has by itself."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from jaxfit import losses
from jaxfit.fitting._arguments import method_from, problem_from
from jaxfit.fitting._incidental import warn_of_incidental_parameters
from jaxfit.fitting._points import DataSet
from jaxfit.losses import Huber, Poisson
from jaxfit.models import as_model

T = np.linspace(0.0, 4.0, 12)


def decay(x, amplitude, rate, c):
    return amplitude * jnp.exp(-rate * x) + c


PROBLEM = problem_from(as_model(decay)).problem
MANY_FEW = 40, 12  # data sets, and observations of each
CASES = {
    "nonlinear": (("c",), Poisson(), *MANY_FEW, True),
    "linear": (("rate",), Poisson(), *MANY_FEW, False),
    "few data sets": (("c",), Poisson(), 30, 12, False),
    "many observations": (("c",), Poisson(), 40, 20, False),
    "least squares": (("c",), None, *MANY_FEW, False),
    "a robust loss": (("c",), Huber(1.0), *MANY_FEW, False),
}


def warned(shared, loss, number, points, valid=None):
    x = np.linspace(0.0, 4.0, points)
    data = jaxfit.fitting._points.Points(x, np.ones((number, points)), None)
    method = method_from(loss, None, False, None)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        warn_of_incidental_parameters(PROBLEM, DataSet(data, valid), method, shared)
    return [str(note.message) for note in notes]


@pytest.mark.parametrize("case", CASES)
def test_when_it_is_given(case):
    *arguments, is_expected = CASES[case]
    assert bool(warned(*arguments)) is is_expected


def test_what_does_not_count_is_no_observation():
    counts = np.ones((40, 20), bool)
    assert not warned(("c",), Poisson(), 40, 20, counts)
    counts[:, 12:] = False
    assert warned(("c",), Poisson(), 40, 20, counts)
    counts[:10] = False  # data sets without a point
    assert not warned(("c",), Poisson(), 40, 20, counts)


def test_fit_batch_gives_it():
    random = np.random.default_rng(2)
    rates = random.uniform(0.5, 1.0, (40, 1))
    counts = random.poisson(decay(T, 30.0, rates, 5.0))
    words = "40 data sets share c, and each has amplitude and rate by itself, which "
    p0 = {"amplitude": 30.0, "rate": 0.7, "c": 5.0}
    settings = {"loss": losses.Poisson(), "p0": p0, "shared": "c"}
    with pytest.warns(jaxfit.IncidentalParametersWarning, match=words):
        jaxfit.fit_batch(decay, T, counts, **settings)
