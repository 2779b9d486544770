"""The user's residual function: traced once, flat, real, and with its derivatives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._linalg.kernels import Matrix, Scalar, Vector
from jaxfit._programs.errors import ONLY_REVERSE, is_only_reverse
from jaxfit._programs.exportable import Dimension
from jaxfit._programs.hoist import hoisted
from jaxfit._programs.one_function import (
    LARGEST_REDUCTION,
    can_be_one_function,
    named_axes,
)
from jaxfit._programs.short import in_columns
from jaxfit._programs.smooth import is_smooth, used_places
from jaxfit._rows.predictions import Groups, grouped, means_of
from jaxfit.losses import Likelihood, Loss
from jaxfit.losses._likelihood import MOST


def _real_vector(leaf: Array, dtype: Any) -> Array:
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


def residual_vector(residual: PyTree, dtype: Any) -> Float[Array, " m"]:
    """All residuals as one real vector of the fit's dtype."""
    _check_residual(residual)
    leaves = map(jnp.asarray, jax.tree.leaves(residual))
    return _concatenate([_real_vector(leaf, dtype) for leaf in leaves])


def weight_vector(weights: PyTree, residual: PyTree, dtype: Any) -> Float[Array, " m"]:
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
    flat = []
    for weight, leaf in zip(
        jax.tree.leaves(weights), jax.tree.leaves(residual), strict=True
    ):
        weight = jnp.asarray(weight)
        if jnp.issubdtype(weight.dtype, jnp.complexfloating):
            raise TypeError(f"weights have dtype {weight.dtype}; they must be real.")
        try:
            flat.append(_as_rows(weight.astype(dtype), leaf))
        except ValueError as error:
            raise ValueError(
                f"weights of shape {weight.shape} do not broadcast to residuals of "
                f"shape {leaf.shape}."
            ) from error
    return _concatenate(flat)


def row_vector(flags: Bool[Array, " rows"], residual: PyTree) -> Bool[Array, " m"]:
    """A flag for each row as one for each residual, in the order of `residual_vector`.

    Args:
        flags: one for each row of data, the leading axis of every residual array.
        residual: only structure, shapes and dtypes are used.
    """
    return _concatenate(
        [
            _as_rows(flags.reshape(-1, *[1] * (len(leaf.shape) - 1)), leaf)
            for leaf in jax.tree.leaves(residual)
        ]
    )


def _as_rows(values: Array, leaf: Any) -> Array:
    """What belongs to one residual leaf, broadcast to it and as a vector."""
    values = jnp.broadcast_to(values, leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        values = jnp.stack([values, values])
    return jnp.ravel(values)


def _jacobian_matrix(
    jacobian: PyTree, residual: PyTree, x: PyTree, dtype: Any
) -> Array:
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


class Evaluated(NamedTuple):
    """Rows: residuals, and their derivatives along directions."""

    residual: Float[Array, "m *lanes"]
    columns: Float[Array, "n m *lanes"]
    cost: Float[Array, "m *lanes"] | None  # of a likelihood; None: half a square
    weights: Float[Array, "m *lanes"] | None = None
    limited: Bool[Array, "m *lanes"] | None = None  # of `LikelihoodTerms`

    @classmethod
    def of_residuals(
        cls,
        residual: Float[Array, " m"],
        weights: Float[Array, " m"] | None = None,
        cost: Float[Array, " m"] | None = None,
    ) -> "Evaluated":
        """Rows of which no derivatives are asked."""
        columns = jnp.zeros((0, len(residual)), residual.dtype)
        return cls(residual, columns, cost, weights)


class Residuals(NamedTuple):
    """The user's residual function, traced: it is not called in Python again."""

    # (x, *pieces, *constants) -> residuals, or means, (m,), and what is beside these
    vector: Callable
    matrix: Callable | None  # (x, *pieces, *more) -> a given Jacobian (m, n)
    reverse: bool  # the Jacobian by reverse mode
    forward: bool  # by forward mode, and nothing else
    structure: PyTree  # of the residuals: their shapes and dtypes
    constants: list  # the arrays that it closes over
    more: list  # those that the Jacobian closes over
    jaxpr: Any  # of the user's function
    in_columns: bool = False  # see `_programs/short.py`

    @property
    def number(self) -> Dimension:
        """The number of residuals; complex ones count as two."""
        return _number(self.structure)

    def can_be_one_function(self, n: int) -> bool:
        """Whether with n derivatives they can stand in a function of the machine."""
        is_product = self.reverse or self.matrix is not None
        if is_product or self.number >= LARGEST_REDUCTION:
            return False
        return can_be_one_function(self.jaxpr, n + 1)

    @property
    def sees_a_batch(self) -> bool:
        """Whether they speak to others along an axis of `jax.vmap`."""
        manual = jax.sharding.get_abstract_mesh().manual_axes
        return not named_axes(self.jaxpr) <= set(manual)

    @property
    def is_smooth(self) -> bool:
        """Whether they can have no kink."""
        return is_smooth(self.jaxpr)

    def value(self, x: Vector, *pieces: PyTree) -> Float[Array, " m"]:
        """The residuals, or the means of a likelihood."""
        return self.predicted(x, *pieces).values

    def predicted(self, x: Vector, *pieces: PyTree) -> "Predicted":
        """The residuals, or the means of a likelihood and what stands beside them."""
        return self.vector(x, *pieces, *self.constants)

    def evaluate(
        self,
        x: Vector,
        directions: Matrix,
        *pieces: PyTree,
        most: Scalar | None = None,
    ) -> Evaluated:
        """Residuals, and their derivatives along directions (the rows).

        Args:
            most: times what a row of a likelihood shows of its curvature is believed.
        """
        if self.in_columns:
            plain = self._replace(in_columns=False)

            def evaluated(x: Any, directions: Any, pieces: Any, most: Any) -> Evaluated:
                return plain.evaluate(x, directions, *pieces, most=most)

            return in_columns(evaluated, x, directions, pieces, most)
        pushed = self._pushed(x, directions, *pieces)
        if pushed.groups is None:
            return Evaluated(pushed.values, pushed.columns, None)
        terms = pushed.groups.terms(pushed.values, MOST if most is None else most)
        return Evaluated(
            residual=terms.residual,
            columns=terms.root * pushed.columns,
            cost=terms.cost,
            limited=terms.limited,
        )

    def costs(
        self, x: Vector, counts: Bool[Array, " m"] | None, *pieces: PyTree
    ) -> Evaluated:
        """Residuals, or the costs of a likelihood, without derivatives."""
        values, groups = self.predicted(x, *pieces)
        cost = None if groups is None else groups.costs(values, counts)
        return Evaluated.of_residuals(values, cost=cost)

    def _pushed(self, x: Vector, directions: Matrix, *pieces: PyTree) -> "_Pushed":
        """What the function returns, and its derivatives along directions."""

        def values(x: Array) -> tuple[Array, Groups | None]:
            return self.predicted(x, *pieces)

        if self.matrix is not None:
            jacobian = self.matrix(x, *pieces, *self.more)
            value, groups = values(x)
            return _Pushed(value, _times(directions, jacobian), groups)
        if self.reverse:
            value, pull, groups = jax.vjp(values, x, has_aux=True)
            (jacobian,) = jax.vmap(pull)(jnp.eye(len(value), dtype=x.dtype))
            return _Pushed(value, _times(directions, jacobian), groups)

        def push(direction: Array) -> tuple[Array, Array, Groups | None]:
            return jax.jvp(values, (x,), (direction,), has_aux=True)

        try:
            return _Pushed(*jax.vmap(push, out_axes=(None, 0, None))(directions))
        except TypeError as error:
            if not is_only_reverse(error):
                raise
            if self.forward:
                raise TypeError(ONLY_REVERSE) from error
        return self._replace(reverse=True)._pushed(x, directions, *pieces)


class Predicted(NamedTuple):
    """What a function returns, flat."""

    values: Float[Array, " m"]  # residuals, or means
    groups: Groups | None  # what stands beside the means of a likelihood


class _Pushed(NamedTuple):
    """`Predicted`, with derivatives of the values along directions."""

    values: Float[Array, " m"]
    columns: Float[Array, "n m"]
    groups: Groups | None


def jacobian(function: Callable, x: Vector) -> Array:
    """Derivatives (m, n), forward or, where the function refuses that, in reverse."""
    try:
        return jax.jacfwd(function)(x)
    except TypeError as error:
        if not is_only_reverse(error):
            raise
    return jax.jacrev(function)(x)


def trace_residuals(
    fn: Callable,
    jac: str | Callable | None,
    unravel: Callable,
    loss: Loss | Likelihood | None,
    x: Float[Array, " n"],
    *pieces: PyTree,
    is_masked: bool,
) -> Residuals:
    """Trace `fn` at parameters like x, and choose how to differentiate it.

    Forward mode pushes the directions through `fn` itself; the other modes form J and
    multiply. Reverse mode is cheaper where there are fewer rows than parameters, but
    could not hide a NaN in a row that does not count.

    Args:
        fn: residual function of (parameters, *pieces).
        jac: "fwd", "rev", a function of (parameters, *pieces), or None for the cheaper,
            and for reverse mode where `fn` has no other (diffrax, odeint).
        unravel: from the flat vector to the user's parameters.
        loss: a likelihood asks for a `Prediction`.
        x: a point.
        pieces: data that may be others at each call, of these shapes.
        is_masked: whether some rows may not count.
    """
    dtype, structure = x.dtype, []

    def vector(x: Array, *pieces: PyTree) -> Predicted:
        output = fn(unravel(x), *pieces)
        residual = jax.tree.map(jnp.asarray, means_of(output))
        structure.append(jax.tree.map(jax.typeof, residual))
        values = residual_vector(residual, dtype)
        beside = grouped(output, loss, lambda leaf: residual_vector(leaf, dtype))
        return Predicted(values, beside)

    vector, constants, jaxpr = hoisted(vector, x, *pieces)
    _check_observed(jaxpr)
    matrix, more = None, []
    if callable(jac):

        def flat(x: Array, *pieces: PyTree) -> Array:
            parameters = unravel(x)
            jacobian = jac(parameters, *pieces)
            return _jacobian_matrix(jacobian, structure[0], parameters, dtype)

        matrix, more, _ = hoisted(flat, x, *pieces)
    reverse = jac == "rev"
    if jac is None and not is_masked:
        reverse = _number(structure[0]) < len(x)
    return Residuals(
        vector=vector,
        matrix=matrix,
        reverse=reverse,
        forward=jac == "fwd",
        structure=structure[0],
        constants=constants,
        more=more,
        jaxpr=jaxpr,
    )


def _check_observed(jaxpr: Any) -> None:
    """Refuse observed numbers that depend on the parameters, as far as can be seen.

    What has effects, such as printing, counts as used for them.
    """
    has_observed = len(jaxpr.outvars) > 1
    if has_observed and not jaxpr.effects and 0 in used_places(jaxpr, but=1):
        raise TypeError(
            "The observed numbers of a Prediction, or the numbers of its likelihood, "
            "depend on the parameters x. They must be data: put what depends on x "
            "into the mean."
        )


def _number(structure: PyTree) -> Dimension:
    return sum(
        leaf.size * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
        for leaf in jax.tree.leaves(structure)
    )


def _times(directions: Array, jacobian: Array) -> Array:
    return jnp.dot(directions, jacobian.T, precision=jax.lax.Precision.HIGHEST)
