"""Whatever can be known at trace time is an error that says what to do."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay, residual

import jaxfit
from jaxfit import Options, losses

DATA, _ = decay()


def solve(fn=residual, x0=START, data=DATA, **kwargs):
    return jaxfit.solve(fn, x0, data, **kwargs)


CASES = [
    ("fn", {"fn": 3.0}, TypeError, "expected a function"),
    ("integer x0", {"x0": np.array([1, 1, 0])}, TypeError, "1.0 instead of 1"),
    ("python integer x0", {"x0": [1, 1.0]}, TypeError, "1.0 instead of 1"),
    ("complex x0", {"x0": START + 0j}, TypeError, "real"),
    ("half x0", {"x0": START.astype(np.float16)}, TypeError, "float32"),
    ("empty x0", {"x0": np.zeros(0)}, ValueError, "at least one parameter"),
    ("no x0", {"x0": {}}, ValueError, "at least one parameter"),
    ("bounds no pair", {"bounds": 3.0}, ValueError, "pair"),
    ("three bounds", {"bounds": (0.0, 1.0, 2.0)}, ValueError, "pair"),
    ("bounds shape", {"bounds": (np.zeros(2), 9.0)}, ValueError, "shape"),
    ("bounds tree", {"bounds": ({"a": 0.0}, 9.0)}, ValueError, "structure"),
    ("complex bounds", {"bounds": (0j, 9.0)}, TypeError, "real"),
    ("weights shape", {"weights": np.ones(39)}, ValueError, "broadcast"),
    ("weights tree", {"weights": {"a": 1.0}}, ValueError, "structure"),
    ("complex weights", {"weights": 1j}, TypeError, "real"),
    ("loss", {"loss": "huber"}, TypeError, "Huber"),
    ("loss class", {"loss": losses.Huber}, TypeError, "Huber"),
    ("options", {"options": {"ftol": 1e-8}}, TypeError, "Options"),
    ("rows", {"rows": 100}, TypeError, "Whole"),
    (
        "scale shape",
        {"options": Options(x_scale=np.ones(2))},
        ValueError,
        "x_scale has an array of shape",
    ),
    ("no rows", {"fn": lambda x, d: x[:0]}, ValueError, "no residuals"),
    ("None", {"fn": lambda x, d: None}, ValueError, "no residuals"),
    (
        "integers",
        {"fn": lambda x, d: jnp.round(x).astype(int)},
        TypeError,
        "floating-point",
    ),
    (
        "jac shape",
        {"options": Options(jac=lambda x, d: jnp.ones((3, 40)))},
        ValueError,
        "jac",
    ),
]


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_solve(kwargs, error, match):
    with pytest.raises(error, match=match):
        solve(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"ftol": -1.0}, "ftol"),
        ({"xtol": np.nan}, "xtol"),
        ({"gtol": "tight"}, "gtol"),
        ({"max_steps": 0}, "max_steps"),
        ({"x_scale": 0.0}, "x_scale"),
        ({"x_scale": np.array([1.0, -1.0])}, "x_scale"),
        ({"x_scale": "jacobian"}, "x_scale"),
        ({"jac": "3-point"}, "jac"),
    ],
)
def test_options(kwargs, match):
    with pytest.raises(ValueError, match=match):
        Options(**kwargs)


def test_a_loss_without_rho():
    class Empty(losses.Loss):
        pass

    with pytest.raises(NotImplementedError, match="rho"):
        solve(loss=Empty(1.0))
