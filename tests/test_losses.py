"""Robust losses: SciPy's definitions, and what SciPy makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import START, decay, residual
from scipy.optimize import least_squares

import jaxfit
from jaxfit import losses

ALL = [
    losses.Linear,
    losses.Huber,
    losses.SoftL1,
    losses.Cauchy,
    losses.Arctan,
    losses.Tukey,
]
SCIPY = {
    losses.Linear: "linear",
    losses.Huber: "huber",
    losses.SoftL1: "soft_l1",
    losses.Cauchy: "cauchy",
    losses.Arctan: "arctan",
}


@pytest.mark.parametrize("kind", ALL)
def test_derivatives(kind):
    """evaluate() against automatic differentiation of rho(), and the convention."""
    loss = kind(2.0)
    z = jnp.array([1e-12, 1e-3, 0.3, 0.99, 1.01, 4.0, 100.0])
    rho, slope, curvature = loss.evaluate(z)
    np.testing.assert_allclose(rho, loss.rho(z), rtol=1e-12)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(loss.rho))(z), rtol=1e-9)
    second = jax.vmap(jax.grad(jax.grad(loss.rho)))(z)
    np.testing.assert_allclose(curvature, second, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(slope[0], 1, rtol=1e-11)
    np.testing.assert_allclose(rho[0] / z[0], 1, rtol=1e-11)


@pytest.mark.parametrize("kind", SCIPY)
def test_agrees_with_scipy(kind):
    """Cost, gradient and scaled Jacobian at SciPy's solution, to rounding."""
    (t, y), _ = decay()
    y = y + 1.5 * (np.arange(40) % 9 == 4)
    expected = least_squares(
        lambda x: np.asarray(residual(x, (t, y))),
        START,
        lambda x: np.asarray(jax.jacfwd(residual)(jnp.asarray(x), (t, y))),
        loss=SCIPY[kind],
        f_scale=0.15,
        max_nfev=3,
    )
    options = jaxfit.Options(max_steps=1)
    here = jaxfit.solve(residual, expected.x, (t, y), loss=kind(0.15), options=options)
    np.testing.assert_allclose(here.cost, expected.cost, rtol=1e-13)
    np.testing.assert_allclose(here.gradient, expected.grad, rtol=1e-11, atol=1e-13)
    gram = expected.jac.T @ expected.jac
    np.testing.assert_allclose(here.linearization.hessian, gram, rtol=1e-11)


@pytest.mark.parametrize("kind", ALL)
def test_outliers_do_not_matter(kind):
    (t, y), truth = decay(noise=0.02)
    spoilt = y + 1.5 * (np.arange(40) % 9 == 4)
    solution = jaxfit.solve(residual, truth + 0.05, (t, spoilt), loss=kind(0.1))
    assert solution.success
    far = np.max(np.abs(solution.x - truth))
    assert far > 0.1 if kind is losses.Linear else far < 0.05, far


class Welsch(losses.Loss):
    """A user's own loss: only rho is given."""

    def rho(self, z):
        return 1 - jnp.exp(-z)


def test_a_users_own_loss():
    (t, y), truth = decay(noise=0.02)
    spoilt = y + 1.5 * (np.arange(40) % 9 == 4)
    solution = jaxfit.solve(residual, START, (t, spoilt), loss=Welsch(0.3))
    assert solution.success
    np.testing.assert_allclose(solution.x, truth, atol=0.1)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, "a", [1.0, 2.0]])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match="scale"):
        losses.Huber(scale)
