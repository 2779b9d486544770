"""The kernels: against dense linear algebra, alone and in lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfit._core.quadratic import Quadratic, reduce_quadratic, trust_region_step
from jaxfit._linalg.branches import lanes_first, lanes_last
from jaxfit._linalg.gram import gram
from jaxfit._linalg.inverse import inverse_gram, swept
from jaxfit._linalg.kernels import norm
from jaxfit._linalg.rotations import diagonalised, inverse_of

SIZES = [1, 2, 3, 5, 14]


def models(n, rank=None, batch=4, seed=0, framed=False):
    """A batch of models with B = AᵀA, g in its range."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(batch, n + 3, n))
    if rank is not None:
        a = a @ rng.normal(size=(batch, n, rank)) @ rng.normal(size=(batch, rank, n))
    b = np.swapaxes(a, 1, 2) @ a
    g = np.einsum("bmn,bm->bn", a, rng.normal(size=(batch, n + 3)))
    frame = np.broadcast_to(np.eye(n), b.shape)
    if framed:
        frame = np.triu(rng.uniform(0.5, 1, size=b.shape))
    inverse = np.linalg.inv(frame)
    columns = a @ inverse
    gram = np.swapaxes(columns, 1, 2) @ columns
    rhs = np.einsum("bji,bj->bi", inverse, g)
    squared = np.diagonal(b, axis1=1, axis2=2)
    model = b, g, gram, rhs, frame, np.ones_like(g), np.zeros_like(g), squared
    return Quadratic(*map(jnp.asarray, model))


def single(model, i):
    return jax.tree.map(lambda leaf: leaf[i], model)


def alone(kernel):
    """A kernel on one fit of a batch."""
    compiled = jax.jit(kernel)
    return lambda i, *args: compiled(*(single(arg, i) for arg in args))


def in_lanes(kernel):
    """A kernel on a batch whose axis is the first, run on lanes."""

    def run(*args):
        return lanes_first(kernel(*lanes_last(args)))

    return jax.jit(run)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("framed", [False, True])
def test_reduction(n, framed):
    """Q T Qᵀ = B, Qᵀg, and the Newton step; lanes as single."""
    model = models(n, framed=framed)
    batch, one = in_lanes(reduce_quadratic)(model), alone(reduce_quadratic)
    for i in range(4):
        b, g = np.asarray(model.matrix[i]), np.asarray(model.gradient[i])
        newton = np.linalg.solve(b, g)
        for reduced in (single(batch, i), one(i, model)):
            q, t = np.asarray(reduced.basis), np.asarray(reduced.matrix)
            np.testing.assert_allclose(q @ t @ q.T, b, atol=1e-11 * np.abs(b).max())
            np.testing.assert_allclose(q @ q.T, np.eye(n), atol=1e-13)
            np.testing.assert_allclose(q @ reduced.rhs, g, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(q @ reduced.newton, newton, rtol=1e-8)
            np.testing.assert_allclose(reduced.decrement, g @ newton / 2, rtol=1e-9)
            inverse = np.linalg.solve(b, newton)
            np.testing.assert_allclose(reduced.slope, newton @ inverse, rtol=1e-8)
            image = reduced.images(jnp.asarray(g)[:, None])[:, 0]
            np.testing.assert_allclose(image, b @ g, rtol=1e-10)
            assert reduced.full_rank


@pytest.mark.parametrize("n", [2, 3, 5, 8, 14])
@pytest.mark.parametrize("framed", [False, True])
def test_deficient_newton_step_has_least_norm(n, framed):
    model = models(n, rank=n - 1, framed=framed)
    batch, one = in_lanes(reduce_quadratic)(model), alone(reduce_quadratic)
    for i in range(4):
        expected = np.linalg.pinv(model.matrix[i], rcond=1e-11) @ model.gradient[i]
        for reduced in (single(batch, i), one(i, model)):
            step = reduced.basis @ reduced.newton
            np.testing.assert_allclose(step, expected, rtol=1e-6, atol=1e-9)
            assert not reduced.full_rank


@pytest.mark.parametrize("n", [2, 3, 8, 14])
def test_frame(n):
    """J P is nearly orthonormal where J has lost digits in its Gram matrix, and the
    model keeps them in that frame."""
    rng = np.random.default_rng(0)
    j = rng.normal(size=(n + 3, n))
    j[:, -1] = j[:, 0] + 1e-6 * j[:, -1]
    r = rng.normal(size=n + 3)
    gram, rhs, ones = j.T @ j, j.T @ r, np.ones(n)

    def reduced(gram, rhs, frame):
        b, g = frame.T @ gram @ frame, frame.T @ rhs
        model = b, g, gram, rhs, frame, ones, 0 * ones, np.diag(b)
        return reduce_quadratic(Quadratic(*map(jnp.asarray, model)))

    first = reduced(gram, rhs, np.eye(n))
    directions = np.asarray(first.frame.directions)
    np.testing.assert_allclose(directions @ first.frame.inverse.T, np.eye(n), atol=1e-8)
    columns = j @ directions.T
    assert np.linalg.cond(columns) < 1.1
    gram, rhs = columns.T @ columns, columns.T @ r
    framed = reduced(gram, rhs, np.asarray(first.frame.inverse))
    newton = framed.basis @ framed.newton
    expected = np.linalg.lstsq(j, r, rcond=None)[0]
    np.testing.assert_allclose(newton, expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9, 2.0])
def test_trust_region_step(n, fraction):
    """|p| is the radius, (B + αI) p = -g to 1 %, and lanes agree with single."""
    model = models(n, seed=1)

    def step(model, fraction):
        reduced = reduce_quadratic(model)
        radius = fraction * norm(reduced.newton)
        return trust_region_step(reduced, radius, jnp.zeros_like(radius)), radius

    fractions = jnp.full(4, fraction)
    (batch, radii), alone_step = in_lanes(step)(model, fractions), alone(step)
    for i in range(4):
        b, g = np.asarray(model.matrix[i]), np.asarray(model.gradient[i])
        one, _ = alone_step(i, model, fractions)
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


@pytest.mark.parametrize("n", SIZES)
def test_sweeps(n):
    """The inverse over the free parameters, and the least pivot in any order."""
    matrix = np.asarray(models(n).matrix)
    free = np.ones((4, n), bool)
    free[1, : n // 2] = False
    found, alone_swept = in_lanes(swept)(matrix, free), alone(swept)
    for i in range(4):
        size = np.sqrt(np.diag(matrix[i]))
        unit = (matrix[i] / np.outer(size, size))[np.ix_(free[i], free[i])]
        expected = np.zeros((n, n))
        expected[np.ix_(free[i], free[i])] = np.linalg.inv(unit)
        for one in (single(found, i), alone_swept(i, matrix, free)):
            scaled = one.matrix * size[:, None] * size
            np.testing.assert_allclose(scaled, expected, rtol=1e-9, atol=1e-9)
            pivot = 1 / np.max(np.diag(expected))
            np.testing.assert_allclose(one.pivot, pivot, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 14])
def test_rotations(n):
    """(F V)ᵀ G (F V) and VᵀCV are diagonal together; lanes as single."""
    model, rng = models(n), np.random.default_rng(1)
    vectors, curvature = rng.normal(size=(4, n, n)), rng.uniform(size=(4, n))
    arguments = model.gram, vectors, curvature
    found = in_lanes(diagonalised)(*arguments)
    alone_form = alone(diagonalised)
    for i in range(4):
        for one in (single(found, i), alone_form(i, *arguments)):
            v, images = np.asarray(one.basis), vectors[i] @ one.basis
            bent = v.T @ (curvature[i][:, None] * v)
            matrix = images.T @ np.asarray(model.gram[i]) @ images + bent
            size = np.abs(matrix).max()
            np.testing.assert_allclose(matrix, np.diag(one.values), atol=1e-12 * size)
            np.testing.assert_allclose(v.T @ v, np.eye(n), atol=1e-13)
            np.testing.assert_allclose(one.images, images, rtol=1e-9, atol=1e-11)
            assert np.all(one.proper)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_rotations_keep_small_values(n):
    """Singular values 14 orders apart to ten digits, where a Gram matrix has none."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    sizes = np.logspace(0, -14, n)
    form = diagonalised(jnp.eye(n), jnp.asarray(q * sizes) @ jnp.eye(n))
    np.testing.assert_allclose(np.sort(form.values)[::-1], sizes**2, rtol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 14])
def test_rotations_of_an_indefinite_matrix(n):
    """Without vectors the values are the eigenvalues, of either sign."""
    matrix = np.random.default_rng(n).normal(size=(n, n))
    matrix = matrix + matrix.T
    form = diagonalised(jnp.asarray(matrix))
    expected = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(np.sort(form.values), expected, atol=1e-13 * n)
    inverse = inverse_of(jnp.asarray(matrix))
    np.testing.assert_allclose(inverse @ matrix, np.eye(n), atol=1e-9)


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
    alone_inverse = alone(inverse_gram)
    for i in range(4):
        kept = free[i] & (np.diag(gram[i]) > 0)
        expected = np.zeros((n, n))
        expected[np.ix_(kept, kept)] = np.linalg.inv(gram[i][np.ix_(kept, kept)])
        one = alone_inverse(i, gram, frame, free)
        for found, undetermined in ((inverse[i], missing[i]), one):
            np.testing.assert_allclose(
                found, expected, rtol=1e-8, atol=1e-12 * np.abs(expected).max()
            )
            np.testing.assert_array_equal(undetermined, free[i] & ~kept)


def test_gram():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 50)))
    batch = jax.vmap(lambda rows: gram(list(rows)))(rows)
    lanes = gram(list(jnp.moveaxis(rows, 0, -1)))
    for i in range(3):
        expected = rows[i] @ rows[i].T
        for found in (batch[i], lanes[..., i], gram(list(rows[i]))):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("lanes", [False, True])
def test_no_library_routine_for_a_dozen_parameters(lanes):
    def step(model):
        reduced = reduce_quadratic(model)
        return trust_region_step(reduced, 1.0 + reduced.slope, reduced.slope)

    model = models(12)
    run = in_lanes(step) if lanes else jax.jit(lambda model: step(single(model, 0)))
    text = run.lower(model).as_text()
    for routine in ("custom_call", "sort", "scatter"):
        assert routine not in text
