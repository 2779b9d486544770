"""Many blocks that differ in their data alone, as few that give the same fit.

Where local parameters enter linearly, and the blocks of data neither in the matrix
A(x) that they multiply nor in what else depends on x, block b has the residuals

    A(x) u + f(x) + s_b,        b = 1 ... N

with s_b known from the start. What is left of them when each u is at its minimum
depends on the blocks only through N, the sum of s_b, and the matrix of their products,
which an orthogonal mixture of the blocks does not change: one block √N (f + s̄), and
for the others as many as s_b has rows, m, made of a square root of S Sᵀ, S = (s_b - s̄).
So a global fit of a million spectra costs a trip what some hundred cost.

How they are found is told in `known.py`. In the end the local parameters of all blocks
are one product with what was fitted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxfit._core.certificate import Status
from jaxfit._core.fit import Request, set_up
from jaxfit._core.options import DEFAULTS
from jaxfit._joint.affine import used_inputs
from jaxfit._joint.block import Factors, Local
from jaxfit._joint.blocks import Blocks
from jaxfit._joint.known import Known, Moments, first_of, pieces
from jaxfit._linalg.kernels import Vector, identity
from jaxfit._rows.linearization import (
    COUNT_BASE,
    Frame,
    Linearization,
    Swept,
    carried,
)
from jaxfit._rows.reduction import weighted_rows
from jaxfit._rows.residuals import Evaluated
from jaxfit._rows.table import split_rows

WORTH = 2  # so many times more blocks than they would be made of


def can_be_mixed(blocks: Blocks, x: Vector) -> bool:
    """Whether blocks differ in their data alone, and are many."""
    return is_worth_it(blocks, blocks.table.number) and are_alike(blocks, x)


def is_worth_it(blocks: Blocks, number: int) -> bool:
    """Whether so many blocks are more than they would be made of."""
    return number > WORTH * (blocks.template.rows.residuals.number + 1)


def are_alike(blocks: Blocks, x: Vector) -> bool:
    """Whether all blocks have the same matrix, offset and weights."""
    table, residuals = blocks.table, blocks.template.rows.residuals
    if not blocks.is_affine:
        return False
    _, weights = table.marked(list(range(len(table.rows))), table.shared)
    if any(isinstance(leaf, int) for leaf in jax.tree.leaves(weights)):
        return False

    def moved(both: tuple, step: tuple, first: list) -> Array:
        def value(u: Array, x: Array) -> Array:
            return residuals.value(u, pieces(blocks, x, first))

        return jax.jvp(value, both, step)[1]

    both, first = (blocks.template.start, x), first_of(blocks)
    used = used_inputs(moved, both, both, first)
    return used.isdisjoint(range(4, 4 + len(first)))


# The few


def mixed(known: Known) -> Blocks:
    """The few blocks that give the same fit as those that are known."""
    moments = known.moments()
    root = moments.root(len(known.blocks.template.start))

    def by_triangles() -> Array:
        return known.triangle(0 * root.matrix, moments.middle)

    matrix = lax.cond(root.has_digits, lambda: root.matrix, by_triangles)
    return few_blocks(known, moments, matrix)


def few_blocks(known: Known, moments: Moments, root: Float[Array, "m m"]) -> Blocks:
    """The few blocks that give the same fit as all.

    Args:
        known: any of them.
        moments: of all.
        root: of their products about the mean.
    """
    weight = jnp.sqrt(moments.number)
    scales = jnp.zeros(len(root) + 1, root.dtype).at[0].set(weight)
    added = jnp.concatenate([(weight * moments.middle)[None], root])
    return _blocks_with(known, scales, added)


def as_of_all(known: Known, lin: Linearization, number: Any) -> Linearization:
    """What was made of few blocks, counted as of all.

    Args:
        number: of all blocks, on this device.
    """
    blocks, weights = known.blocks, known.weights
    counted = known.size if weights is None else jnp.sum(weights != 0)
    each = jnp.where(counted > 0, len(blocks.template.start), 0)
    parameters = _times(number, each)
    swept = Swept(lin.held, parameters, jnp.zeros_like(parameters))
    counted = _times(number, counted)
    if blocks.axes is not None:
        counted, parameters = (
            carried(lax.psum(words, blocks.axes)) for words in (counted, parameters)
        )
        swept = dataclasses.replace(swept, parameters=parameters)
    return dataclasses.replace(lin, counted=counted, swept=swept)


# The local parameters of all


def images(known: Known, x: Vector) -> Float[Array, "k l"]:
    """What each residual adds to local parameters, and in the end what f(x) does.

    Those of a block are s_b times the first, and the last.
    """
    scales = jnp.zeros(known.size + 1, x.dtype).at[known.size].set(1)
    units = jnp.eye(known.size + 1, known.size, dtype=x.dtype)
    return _blocks_with(known, scales, units).minima(x)


def local_of(known: Known, images_at_x: Float[Array, "k l"]) -> Local:
    """The local parameters of all blocks, by one product; no response yet."""
    u = known.times(images_at_x[:-1]) + images_at_x[-1]
    is_finite = jnp.all(jnp.isfinite(u), axis=1)
    status = jnp.where(is_finite, Status.COST, Status.NONFINITE_START)
    local = Local.start(u, known.start)
    return local._replace(status=status.astype(jnp.int32))


def units_of(known: Known, x: Vector, frame: Frame) -> "Units":
    """What the errors of the local parameters of any block are made of."""
    eye = identity(known.blocks.template.start)
    u = jnp.concatenate([0 * eye[:1], eye])
    scales = jnp.zeros(len(u), x.dtype).at[0].set(1)
    added = jnp.zeros((len(u), known.size), x.dtype)
    return Units(_blocks_with(known, scales, added).report(x, frame, u)[1])


class Units(NamedTuple):
    """The factors of blocks that differ in their data alone.

    The response is affine in u: that to f(x), and that to each number of u.
    """

    factors: Factors  # of a block with f(x) and u = 0, and with each unit of u

    def response(self, u: Float[Array, "B l"]) -> Float[Array, "B l n"]:
        """That of blocks with these local parameters."""
        response = self.factors.response
        return response[0] + jnp.einsum("bj,jln->bln", u, response[1:])

    def of_blocks(
        self, response: Any, number: int, repeated: Callable = jnp.broadcast_to
    ) -> Factors:
        """The factors of blocks with these responses.

        Args:
            repeated: of JAX or NumPy.
        """
        zeros = np.zeros(self.factors.gram.shape[-1:], np.int32)
        return Factors(
            response=response,
            active=repeated(zeros, (number, *zeros.shape)),
            **{
                name: repeated(leaf[0], (number, *leaf.shape[1:]))
                for name, leaf in self.factors._asdict().items()
                if name in ("gram", "frame", "is_used")
            },
        )


def _blocks_with(
    known: Known, scales: Float[Array, " k"], added: Float[Array, "k m"]
) -> Blocks:
    """Blocks with the residuals A(x) u + scale f(x) + what is added."""
    blocks, zeros = known.blocks, jnp.zeros_like(known.blocks.template.start)
    residuals, first = blocks.template.rows.residuals, first_of(blocks)
    weights = known.weights

    def of_block(u: Array, x: Array) -> tuple[Array, Array]:
        """The residuals at u = 0, and A(x) u."""
        at_x = pieces(blocks, x, first)
        return jax.jvp(lambda u: residuals.value(u, at_x), (zeros,), (u,))

    at_start, _ = of_block(zeros, known.start)

    def residual(u: Array, data: tuple) -> Array:
        x, (scale, more) = data
        at_x, image = of_block(u, x)
        moved = image + scale * (at_x - at_start)
        rows = Evaluated.of_residuals(moved, weights)
        return weighted_rows(rows).residual + more

    template = set_up(
        Request(
            fn=residual,
            jac=None,
            x0=zeros,
            data=(known.start, (scales[0], added[0])),
            bounds=None,
            weights=None,
            loss=None,
            options=DEFAULTS,
        )
    )
    ours = blocks.template
    template = template._replace(
        is_one_function=template.is_one_function and ours.is_one_function,
        in_parts=template.in_parts and ours.in_parts,
    )
    table = split_rows((scales, added), None)
    return blocks._replace(table=table, template=template, size=None, valid=None)


def _times(number: Any, each: Any) -> Array:
    """A product of two counts, in words."""
    number, each = jnp.asarray(number, jnp.int32), jnp.asarray(each, jnp.int32)
    high, low = number // COUNT_BASE * each, number % COUNT_BASE * each
    return carried(jnp.stack([high, low]))
