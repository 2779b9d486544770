"""The benchmarks run: what they take from inside of the library is still there."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "bench").glob("[a-z]*.py"))
)
def test_each_can_be_imported(name):
    """And says what it measures."""
    assert importlib.import_module(f"bench.{name}").__doc__


def test_an_evaluation_as_a_fit_does_it():
    """Beside the same by hand: the sum over a Gram matrix of Jacobian and residual."""
    batch = importlib.import_module("bench.batch")
    workloads = importlib.import_module("bench.workloads")
    fn = workloads.residual(workloads.T2)
    (x, *_), (y, *_) = workloads.problems(workloads.T2, 1)
    x, y = jnp.asarray(x), jnp.asarray(y)
    rows = jnp.stack([*jax.jacobian(fn)(x, y).T, fn(x, y)])
    expected = np.sum(np.asarray(rows @ rows.T))
    np.testing.assert_allclose(batch.as_the_solver(fn, x, y), expected, rtol=1e-10)
