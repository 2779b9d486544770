"""Models written in NumPy, fitted as they stand: SciPy's answer or a lower cost."""

import warnings

import numpy as np
import pytest
import scipy.optimize
from numpy_models import EXAMPLES, Example

import jaxfit

SAME = 1e-5  # standard errors between two answers
NEAR = 1e-3  # standard errors between optima whose covariances are compared


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_as_scipy_fits_it(example):
    y = example.y
    arguments = example.function, example.x, y, example.start
    theirs, expected = scipy.optimize.curve_fit(*arguments, **example.keywords)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, covariance = jaxfit.curve_fit(*arguments, **example.keywords)
    _check_where_it_runs(example, caught)
    apart = np.abs(ours - theirs) / np.sqrt(np.diag(expected))
    lower = _cost(example, y, ours) <= _cost(example, y, theirs) * (1 + 1e-12)
    assert lower or apart.max() <= SAME
    if apart.max() <= NEAR:
        unit = np.sqrt(np.diag(expected))
        unit = np.outer(unit, unit)
        np.testing.assert_allclose(covariance / unit, expected / unit, atol=1e-3)


def _check_where_it_runs(example: Example, caught: list) -> None:
    """One warning with the reason if it is on the host, and none if it is compiled."""
    found = [w for w in caught if issubclass(w.category, jaxfit.HostModelWarning)]
    assert len(found) == (example.host is not None)
    for warning in found:
        assert example.host in str(warning.message)


def _cost(example: Example, y: np.ndarray, parameters: np.ndarray) -> float:
    residual = np.asarray(example.function(example.x, *parameters)) - y
    return float(np.sum((residual / example.keywords.get("sigma", 1.0)) ** 2))


def test_most_are_compiled():
    compiled = [example for example in EXAMPLES if example.host is None]
    assert len(EXAMPLES) >= 40
    assert len(compiled) >= 0.75 * len(EXAMPLES)
