"""The kernels: against dense linear algebra, alone and in lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfit import _model, _small
from jaxfit._covariance import inverse_gram

SIZES = [1, 2, 3, 5, 8, 14]


def models(n, rank=None, batch=4, seed=0):
    """A batch of models with B = AᵀA, g in its range."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(batch, n + 3, n))
    if rank is not None:
        a = a @ rng.normal(size=(batch, n, rank)) @ rng.normal(size=(batch, rank, n))
    b = np.swapaxes(a, 1, 2) @ a
    g = np.einsum("bmn,bm->bn", a, rng.normal(size=(batch, n + 3)))
    identity = np.broadcast_to(np.eye(n), b.shape)
    no = np.zeros(batch, bool)
    return _model.Model(*map(jnp.asarray, (b, g, b, g, identity, 0 * g, no)))


def single(model, i):
    return jax.tree.map(lambda leaf: leaf[i], model)


def in_lanes(kernel):
    """A kernel on a batch whose axis is the first, run on lanes."""

    def run(*args):
        return _small.lanes_first(kernel(*_small.lanes_last(args)))

    return jax.jit(run)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("factored", [False, True])
def test_reduction(n, factored):
    """Q T Qᵀ = B, Qᵀg, and the Newton step; lanes as single."""
    model = models(n)._replace(factored=jnp.full(4, factored))
    batch = in_lanes(_model.reduce_model)(model)
    for i in range(4):
        b, g = np.asarray(model.matrix[i]), np.asarray(model.gradient[i])
        newton = np.linalg.solve(b, g)
        for reduced in (single(batch, i), _model.reduce_model(single(model, i))):
            q = np.asarray(reduced.basis)
            off = np.asarray(reduced.offdiagonal)
            t = np.diag(reduced.diagonal) + np.diag(off, 1) + np.diag(off, -1)
            np.testing.assert_allclose(q @ t @ q.T, b, atol=1e-11 * np.abs(b).max())
            np.testing.assert_allclose(q @ q.T, np.eye(n), atol=1e-13)
            np.testing.assert_allclose(q @ reduced.newton, newton, rtol=1e-8)
            np.testing.assert_allclose(reduced.decrement, g @ newton / 2, rtol=1e-9)
            image = reduced.images(jnp.asarray(g)[:, None])[:, 0]
            np.testing.assert_allclose(image, b @ g, rtol=1e-10)
            assert reduced.full_rank


@pytest.mark.parametrize("n", [2, 3, 5, 8, 14])
@pytest.mark.parametrize("factored", [False, True])
def test_deficient_newton_step_has_least_norm(n, factored):
    model = models(n, rank=n - 1)._replace(factored=jnp.full(4, factored))
    batch = in_lanes(_model.reduce_model)(model)
    for i in range(4):
        expected = np.linalg.pinv(model.matrix[i], rcond=1e-11) @ model.gradient[i]
        for reduced in (single(batch, i), _model.reduce_model(single(model, i))):
            step = reduced.basis @ reduced.newton
            np.testing.assert_allclose(step, expected, rtol=1e-6, atol=1e-9)
            assert not reduced.full_rank


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9, 2.0])
def test_trust_region_step(n, fraction):
    """|p| is the radius, (B + αI) p = -g to 1 %, and lanes agree with single."""
    model = models(n, seed=1)

    def step(model, fraction):
        reduced = _model.reduce_model(model)
        radius = fraction * _small.norm(reduced.newton)
        return _model.trust_region_step(reduced, radius, jnp.zeros_like(radius)), radius

    batch, radii = in_lanes(step)(model, jnp.full(4, fraction))
    for i in range(4):
        b, g = np.asarray(model.matrix[i]), np.asarray(model.gradient[i])
        one, _ = step(single(model, i), fraction)
        for p, alpha, predicted, slope, length in (single(batch, i), one):
            np.testing.assert_allclose(length, np.linalg.norm(p), rtol=1e-12)
            np.testing.assert_allclose(slope, -g @ p, rtol=1e-9)
            np.testing.assert_allclose(predicted, -g @ p - p @ b @ p / 2, rtol=1e-8)
            if fraction > 1:
                assert alpha == 0
                np.testing.assert_allclose(b @ p, -g, rtol=1e-7)
            else:
                np.testing.assert_allclose(length, radii[i], rtol=1e-12)
                exact = -np.linalg.solve(b + alpha * np.eye(n), g)
                np.testing.assert_allclose(p, exact, rtol=0.02)
        np.testing.assert_allclose(single(batch, i).p, one.p, rtol=1e-7)


@pytest.mark.parametrize("n", [1, 3, 8, 14])
def test_square_root(n):
    """RᵀR is the matrix, and the second factor is R⁻ᵀ."""
    matrix = models(n).matrix
    size = jnp.sqrt(jnp.diagonal(matrix, axis1=1, axis2=2))
    matrix = matrix / (size[:, :, None] * size[:, None, :])
    r, inverse = in_lanes(_small.square_root)(matrix)
    for i in range(4):
        one = _small.square_root(matrix[i])
        for root, back in ((r[i], inverse[i]), one):
            np.testing.assert_allclose(root.T @ root, matrix[i], atol=1e-13)
            np.testing.assert_allclose(back.T @ root, np.eye(n), atol=1e-12)


def test_square_root_of_an_indefinite_matrix():
    """Rounding can leave a negative eigenvalue; the root is finite all the same."""
    matrix = np.array([[1.0, 1.0 + 1e-13], [1.0 + 1e-13, 1.0]])
    root, back = _small.square_root(matrix)
    np.testing.assert_allclose(back.T @ root, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 8, 14])
def test_inverse(n):
    """By sweeps and by singular values, with a fixed and with an unused parameter."""
    gram = np.array(models(n).matrix)
    free = np.ones((4, n), bool)
    if n > 1:
        free[1, 0] = False
        gram[2, -1] = gram[2, :, -1] = 0
    frame = np.broadcast_to(np.eye(n), gram.shape)
    inverse, missing = jax.jit(jax.vmap(inverse_gram))(gram, frame, free)
    for i in range(4):
        kept = free[i] & (np.diag(gram[i]) > 0)
        expected = np.zeros((n, n))
        expected[np.ix_(kept, kept)] = np.linalg.inv(gram[i][np.ix_(kept, kept)])
        one = inverse_gram(gram[i], frame[i], free[i])
        for found, undetermined in ((inverse[i], missing[i]), one):
            np.testing.assert_allclose(
                found, expected, rtol=1e-8, atol=1e-12 * np.abs(expected).max()
            )
            np.testing.assert_array_equal(undetermined, free[i] & ~kept)


def test_gram():
    rows = np.random.default_rng(0).normal(size=(3, 4, 50))
    batch = jax.vmap(lambda rows: _small.gram(list(rows)))(rows)
    lanes = _small.gram(list(np.moveaxis(rows, 0, -1)))
    for i in range(3):
        expected = rows[i] @ rows[i].T
        for found in (batch[i], lanes[..., i], _small.gram(list(rows[i]))):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_library_routine_in_the_lanes():
    """Up to twelve parameters LAPACK is left to ill-conditioned lanes alone."""

    def lane(model):
        reduced = _model.reduce_model(model)
        return _model.trust_region_step(reduced, 1.0 + reduced.slope, reduced.slope)

    text = in_lanes(lane).lower(models(4)).as_text()
    outside = text.split("stablehlo.case")[0]
    assert "lapack" in text
    assert "lapack" not in outside
