"""Residual rows to a `Linearization`: all that a fit keeps of its data.

The m residuals and their (m, n) Jacobian are reduced to n x n: trust region, bounds,
scaling and covariance read nothing else. Linearizations of different rows of the same
problem `merge` by addition, so that it does not matter in how many pieces the rows were
visited.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxfit._small import (
    Flag,
    Matrix,
    Scalar,
    Vector,
    diagonal,
    gram,
    identity,
    matmul,
    matvec,
    some,
    transpose,
)
from jaxfit.losses import Linear, Loss

# A cost is known to so many units of rounding for each residual.
COST_ROUNDING = 4


class Whole(eqx.Module):
    """Visit all residual rows at once: the right choice while they fit in memory."""


class Shared(eqx.Module):
    """Marks a leaf of `data` that is not rows; `fn` receives what it wraps."""

    leaf: Any


def unwrap_shared(data: PyTree) -> PyTree:
    """`data` as `fn` sees it."""
    return jax.tree.map(
        lambda node: node.leaf if isinstance(node, Shared) else node,
        data,
        is_leaf=lambda node: isinstance(node, Shared),
    )


class Frame(NamedTuple):
    """The basis P of directions in which a Jacobian is taken; see `Linearization`."""

    inverse: Matrix  # P⁻¹
    directions: Matrix  # Pᵀ, a direction in each row
    needed: Flag  # False: P is the identity


class Robust(eqx.Module):
    """What a robust loss adds to a linearization."""

    gram: Matrix  # (J_s P)ᵀ J_s P
    cost: Scalar
    influence: Scalar


class Linearization(eqx.Module):
    """The robust least-squares problem near one point, as n x n numbers.

    With r the weighted residuals, J their Jacobian and W = diag(ρ') of the loss (1
    without one), J_s is J with rows scaled for the loss as in
    `scipy.optimize.least_squares`. P = frame⁻¹ is the identity while a fit searches a
    well-conditioned problem. Otherwise the frame is a square root of an earlier Gram
    matrix, so that JP is nearly orthonormal and the Gram matrix keeps the digits
    that squaring the condition number would cost.

    The properties are those of one fit. (Inside a fit, lanes of a batch are the last
    axis of everything; in a batched `Solution` the batch comes first, and its methods
    take one fit after the other.)
    """

    normal: Float[Array, "n+1 n+1 *lanes"]  # (JP r)ᵀ W (JP r)
    frame: Matrix  # P⁻¹
    count: Int[Array, "*lanes"]  # residuals that count
    robust: Robust | None  # None without a loss

    @property
    def cost(self) -> Scalar:
        """Half the sum of the loss."""
        if self.robust is None:
            return 0.5 * self.squared_residual
        return self.robust.cost

    @property
    def influence(self) -> Scalar:
        """The largest ρ' of a residual that counts."""
        if self.robust is None:
            return (self.count > 0).astype(self.normal.dtype)
        return self.robust.influence

    @property
    def framed(self) -> Flag:
        """Whether the frame is not the identity."""
        return some(some(self.frame != identity(self.rhs)))

    @property
    def gram(self) -> Matrix:
        """The model's Hessian in the frame, (J_s P)ᵀ J_s P."""
        if self.robust is None:
            return self.normal[:-1, :-1]
        return self.robust.gram

    @property
    def rhs(self) -> Vector:
        """The gradient in the frame, (JP)ᵀ W r."""
        return self.normal[:-1, -1]

    @property
    def squared_residual(self) -> Scalar:
        """The sum of ρ' r²; without a loss, |r|²."""
        return self.normal[-1, -1]

    @property
    def hessian(self) -> Matrix:
        """The Gauss-Newton Hessian of the cost, J_sᵀ J_s."""
        return _out_of(self.frame, self.gram)

    @property
    def gradient(self) -> Vector:
        """The gradient of the cost."""
        return matvec(transpose(self.frame), self.rhs)

    @property
    def squared_norms(self) -> Vector:
        """|J_i|² of the columns of √W J."""
        return diagonal(_out_of(self.frame, self.normal[:-1, :-1]))


def _out_of(frame, gram):
    """frameᵀ gram frame."""
    return matmul(transpose(frame), matmul(gram, frame))


def merge(a: Linearization, b: Linearization) -> Linearization:
    """The linearization of the rows of `a` and `b` together, taken in one frame."""
    robust = None
    if a.robust is not None and b.robust is not None:
        robust = Robust(
            gram=a.robust.gram + b.robust.gram,
            cost=a.robust.cost + b.robust.cost,
            influence=jnp.maximum(a.robust.influence, b.robust.influence),
        )
    return Linearization(a.normal + b.normal, a.frame, a.count + b.count, robust)


def cost_rounding(linearization: Linearization) -> Scalar:
    """How large a change of the cost may be rounding alone."""
    cost = linearization.cost
    count = linearization.count.astype(cost.dtype)
    return COST_ROUNDING * jnp.finfo(cost.dtype).eps * count * cost


# Residuals as one real vector


def _real_vector(leaf: Array, dtype) -> Array:
    """One residual leaf as a vector; complex numbers count as two real ones."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    return jnp.ravel(leaf).astype(dtype)


def _concatenate(parts: list[Array], axis: int = 0) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _check_residual(residual: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(residual):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"fn(x, data){jax.tree_util.keystr(path)} has dtype {dtype}; "
                "residuals must be real or complex floating-point numbers."
            )
    if sum(np.size(leaf) for leaf in jax.tree.leaves(residual)) == 0:
        raise ValueError(
            "fn(x, data) returned no residuals; a fit needs at least one. Check that "
            "the data are not empty and that fn returns model - observation."
        )


def residual_vector(residual: PyTree, dtype) -> Float[Array, " m"]:
    """All residuals as one real vector of the fit's dtype."""
    _check_residual(residual)
    leaves = map(jnp.asarray, jax.tree.leaves(residual))
    return _concatenate([_real_vector(leaf, dtype) for leaf in leaves])


def weight_vector(weights: PyTree, residual: PyTree, dtype) -> Float[Array, " m"]:
    """Weights broadcast to the residuals, in the order of `residual_vector`.

    Of the residuals only structure, shapes and dtypes are used.
    """
    if isinstance(weights, list) and jax.tree_util.all_leaves([residual]):
        weights = jnp.asarray(weights)
    try:
        weights = jax.tree.broadcast(weights, residual)
    except ValueError as error:
        raise ValueError(
            f"weights have structure {jax.tree.structure(weights)}; the residuals have "
            f"{jax.tree.structure(residual)}. Give weights of the same structure, or "
            "one array that broadcasts to every residual."
        ) from error
    parts = []
    for weight, leaf in zip(
        jax.tree.leaves(weights), jax.tree.leaves(residual), strict=True
    ):
        weight = jnp.asarray(weight)
        if jnp.issubdtype(weight.dtype, jnp.complexfloating):
            raise TypeError(f"weights have dtype {weight.dtype}; they must be real.")
        try:
            weight = jnp.broadcast_to(weight.astype(dtype), leaf.shape)
        except ValueError as error:
            raise ValueError(
                f"weights of shape {weight.shape} do not broadcast to residuals of "
                f"shape {leaf.shape}."
            ) from error
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            weight = jnp.stack([weight, weight])
        parts.append(jnp.ravel(weight))
    return _concatenate(parts)


def _jacobian_matrix(jacobian: PyTree, residual: PyTree, x: PyTree, dtype) -> Array:
    """A user's Jacobian, laid out like `jax.jacobian(fn)(x, data)`, as (m, n)."""
    blocks = jax.tree.leaves(jacobian)
    leaves, columns = jax.tree.leaves(residual), jax.tree.leaves(x)
    shapes = [r.shape + np.shape(c) for r in leaves for c in columns]
    if [np.shape(block) for block in blocks] != shapes:
        raise ValueError(
            f"Options(jac=...) returned arrays of shapes "
            f"{[np.shape(block) for block in blocks]}; expected {shapes}: one for each "
            "residual array and parameter array, with the residual's axes first."
        )
    rows = []
    for i, r in enumerate(leaves):
        row = jnp.concatenate(
            [
                jnp.reshape(blocks[i * len(columns) + j], (r.size, np.size(c)))
                for j, c in enumerate(columns)
            ],
            axis=1,
        )
        if jnp.issubdtype(r.dtype, jnp.complexfloating):
            row = jnp.concatenate([row.real, row.imag])
        rows.append(row.astype(dtype))
    return _concatenate(rows)


class Rows(NamedTuple):
    """The user's residual function, traced: it is not called in Python again."""

    evaluate: (
        Callable  # (x, directions) -> residuals (m, *lanes), columns (n, m, *lanes)
    )
    weights: Float[Array, "m *lanes"] | None
    constants: list  # the arrays that it closes over, data among them


def trace_rows(
    fn: Callable,
    jac: str | Callable | None,
    unravel: Callable,
    data: PyTree,
    weights: PyTree | None,
    x: Float[Array, " n"],
) -> Rows:
    """Trace `fn` at parameters like x, and choose how to differentiate it.

    Forward mode pushes the directions through `fn` itself; the other modes form J and
    multiply. Reverse mode is cheaper where there are fewer rows than parameters, but
    could not hide a NaN in a row of weight zero.

    Args:
        fn: residual function of (parameters, data).
        jac: "fwd", "rev", a function of (parameters, data), or None for the cheaper.
        unravel: from the flat vector to the user's parameters.
        data: what `fn` takes as its second argument.
        weights: None, or weights that broadcast to the residuals.
        x: a point.
    """
    dtype, structure = x.dtype, []

    def vector(x):
        residual = fn(unravel(x), data)
        residual = jax.tree.map(jnp.asarray, residual)
        structure.append(jax.tree.map(jax.typeof, residual))
        return residual_vector(residual, dtype)

    vector, constants = jax.closure_convert(vector, x)
    residual = functools.partial(_with_constants, vector, constants)
    rows = jax.eval_shape(residual, x).shape[0]
    if weights is not None:
        weights = weight_vector(weights, structure[0], dtype)
    if jac is None:
        jac = "rev" if rows < len(x) and weights is None else "fwd"
    if jac == "fwd":
        return Rows(functools.partial(_push, residual), weights, constants)
    if not callable(jac):
        return Rows(functools.partial(_pull, residual, rows), weights, constants)

    def matrix(x):
        jacobian = jac(unravel(x), data)
        return _jacobian_matrix(jacobian, structure[0], unravel(x), dtype)

    matrix, more = jax.closure_convert(matrix, x)
    jacobian = functools.partial(_with_constants, matrix, more)
    evaluate = functools.partial(_multiply, residual, jacobian)
    return Rows(evaluate, weights, [*constants, *more])


def _with_constants(fn, constants, x):
    return fn(x, *constants)


def _push(residual, x, directions):
    """Forward mode."""
    push = functools.partial(jax.jvp, residual, (x,))
    return jax.vmap(lambda v: push((v,)), out_axes=(None, 0))(directions)


def _pull(residual, rows, x, directions):
    """Reverse mode."""
    value, pull = jax.vjp(residual, x)
    (jacobian,) = jax.vmap(pull)(jnp.eye(rows, dtype=x.dtype))
    return value, _times(directions, jacobian)


def _multiply(residual, jacobian, x, directions):
    """A user's Jacobian."""
    return residual(x), _times(directions, jacobian(x))


def _times(directions, jacobian):
    return jnp.dot(directions, jacobian.T, precision=jax.lax.Precision.HIGHEST)


# Weights and the loss


def is_linear(loss: Loss | None) -> bool:
    """Whether a loss is plain least squares."""
    return loss is None or type(loss) is Linear


def _weighted(residual, columns, weights):
    """√w r and √w J, and which rows count (None: all).

    What has weight zero does not count and may be NaN.
    """
    if weights is None:
        return residual, columns, None
    counts = weights != 0
    root = jnp.sqrt(weights)

    def weighted(rows):
        return jnp.where(counts, root * rows, 0)

    return weighted(residual), jax.tree.map(weighted, columns), counts


def _apply_loss(loss, residual, counts):
    """Factors of the rows, and the cost, of a robust loss.

    With the first factor, √ρ', JᵀWr is the gradient. With the second the model Hessian
    is that of Triggs et al., "Bundle adjustment: a modern synthesis" (2000), eq. 11,
    with SciPy's floor where the second derivative of the loss makes it indefinite.

    Returns:
        both factors (m, *lanes), half the sum of the loss, the largest ρ'.
    """
    dtype = residual.dtype
    scale = jnp.asarray(loss.scale, dtype)
    z = (residual / scale) ** 2
    rho, slope, curvature = loss.evaluate(z)
    model = jnp.maximum(slope + 2 * curvature * z, jnp.finfo(dtype).eps)
    if counts is not None:
        rho, slope = jnp.where(counts, rho, 0), jnp.where(counts, slope, 0)
    weight = jnp.sqrt(jnp.maximum(slope, 0))
    cost = 0.5 * scale**2 * jnp.sum(rho, axis=0)
    return weight, jnp.sqrt(model), cost, jnp.max(slope, axis=0)


def linearize(rows: Rows, loss: Loss | None, x: Vector, frame: Frame) -> Linearization:
    """Evaluate residuals and derivatives at x, and reduce all rows to n x n.

    Args:
        rows: from `trace_rows`.
        loss: a robust loss, or None.
        x: the point.
        frame: the directions in which to differentiate.
    """
    residual, columns = rows.evaluate(x, frame.directions)
    return reduce_rows(residual, columns, rows.weights, loss, frame)


def reduce_rows(
    residual: Float[Array, "m *lanes"],
    columns: Sequence[Float[Array, "m *lanes"]] | Float[Array, "n m"],
    weights: Float[Array, "m *lanes"] | None,
    loss: Loss | None,
    frame: Frame,
) -> Linearization:
    """Residuals and their derivatives along the frame's directions, as n x n."""
    residual, columns, counts = _weighted(residual, columns, weights)
    if counts is None:
        count = jnp.full(residual.shape[1:], residual.shape[0])
    else:
        count = jnp.sum(counts, axis=0)
    if is_linear(loss):
        normal = gram([*columns, residual])
        return Linearization(normal, frame.inverse, count, None)
    weight, model, cost, influence = _apply_loss(loss, residual, counts)

    def scaled(factor):
        return jax.tree.map(lambda rows: factor * rows, columns)

    normal = gram([*scaled(weight), weight * residual])
    robust = Robust(gram([*scaled(model)]), cost, influence)
    return Linearization(normal, frame.inverse, count, robust)


def residual_and_jacobian(
    rows: Rows, loss: Loss | None, x: Float[Array, " n"]
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """The weighted residuals, and J_s, the Jacobian with rows scaled for the loss."""
    residual, columns = rows.evaluate(x, identity(x))
    residual, columns, counts = _weighted(residual, columns, rows.weights)
    if not is_linear(loss):
        columns = _apply_loss(loss, residual, counts)[1] * columns
    return residual, columns.T
