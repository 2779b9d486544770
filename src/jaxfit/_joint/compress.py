"""Many blocks that differ in their data alone, as few that give the same fit.

Where local parameters enter linearly, and the blocks of data neither in the matrix
A(x) that they multiply nor in what else depends on x, block b has the residuals

    A(x) u + f(x) + s_b,        b = 1 ... N

with s_b known from the start. What is left of them when each u is at its minimum
depends on the blocks only through N, the sum of s_b, and the matrix of their products,
which an orthogonal mixture of the blocks does not change: one block √N (f + s̄), and
for the others as many as s_b has rows, m, made of a square root of S Sᵀ, S = (s_b - s̄).
So a global fit of a million spectra costs a trip what some hundred cost.

The square root is that of the sum of products, or a triangle from QR factorisations
where what any fit must leave of S would drown in the rounding of its largest products.
In the end the local parameters of all blocks are one product with what was fitted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxfit._core.certificate import Status
from jaxfit._core.fit import Request, set_up
from jaxfit._core.options import DEFAULTS
from jaxfit._joint.affine import used_inputs
from jaxfit._joint.block import Factors, Local
from jaxfit._joint.blocks import Blocks
from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import Vector, identity
from jaxfit._rows.chunks import Chunks, Piece
from jaxfit._rows.linearization import (
    COUNT_BASE,
    Frame,
    Linearization,
    Swept,
    carried,
)
from jaxfit._rows.reduction import weighted_rows
from jaxfit._rows.table import split_rows, whole_rows

WORTH = 2  # so many times more blocks than they would be made of

# Of all products the part that every fit must leave, in units of rounding: above it
# the cost keeps ten digits.
VISIBLE = 1e10

CHUNK = 2**26  # bytes of known residuals that are worked on at once


def can_be_mixed(blocks: Blocks, x: Vector) -> bool:
    """Whether all blocks have the same matrix, offset and weights, and are many."""
    table, residuals = blocks.table, blocks.template.rows.residuals
    if not blocks.is_affine or table.number <= WORTH * (residuals.number + 1):
        return False
    _, weights = table.marked(list(range(len(table.rows))), table.shared)
    if any(isinstance(leaf, int) for leaf in jax.tree.leaves(weights)):
        return False

    def moved(both: tuple, step: tuple, first: list) -> Array:
        def value(u: Array, x: Array) -> Array:
            return residuals.value(u, _pieces(blocks, x, first))

        return jax.jvp(value, both, step)[1]

    both, first = (blocks.template.start, x), _first(blocks)
    used = used_inputs(moved, both, both, first)
    return used.isdisjoint(range(4, 4 + len(first)))


class Mixture(NamedTuple):
    """Blocks, and the few that give the same fit; a pytree."""

    few: Blocks
    all: Blocks
    start: Vector  # x where the residuals of the blocks were taken for s_b

    @classmethod
    def of(cls, blocks: Blocks, x: Vector) -> "Mixture":
        """The mixture of blocks, at any point x."""
        x = varying_with(x, blocks.like)
        mixture = cls(blocks, blocks, x)
        number, total = mixture._added_up(
            lambda known, _: jnp.sum(known, axis=0), jnp.zeros(mixture.rows)
        )
        middle = total / jnp.maximum(number, 1)
        root = mixture._root(middle)
        weight = jnp.sqrt(number)
        scales = jnp.zeros(len(root) + 1, x.dtype).at[0].set(weight)
        known = jnp.concatenate([(weight * middle)[None], root])
        return mixture._replace(few=mixture._of_blocks(scales, known))

    @property
    def rows(self) -> int:
        """Residuals of a block."""
        return self.all.template.rows.residuals.number

    @property
    def _weights(self) -> Float[Array, " m"] | None:
        """Those of the residuals of every block."""
        pieces = _pieces(self.all, self.start, _first(self.all))
        return self.all.template.rows.weights(pieces, self.start.dtype)

    # The blocks of which others are made

    def _of_blocks(
        self, scales: Float[Array, " k"], known: Float[Array, "k m"]
    ) -> Blocks:
        """Blocks with the residuals A(x) u + scale f(x) + known."""
        blocks, zeros = self.all, jnp.zeros_like(self.all.template.start)
        residuals, first = blocks.template.rows.residuals, _first(blocks)
        weights = self._weights

        def of_block(u: Array, x: Array) -> tuple[Array, Array]:
            """The residuals at u = 0, and A(x) u."""
            pieces = _pieces(blocks, x, first)
            return jax.jvp(lambda u: residuals.value(u, pieces), (zeros,), (u,))

        at_start, _ = of_block(zeros, self.start)

        def residual(u: Array, data: tuple) -> Array:
            x, (scale, known) = data
            at_x, image = of_block(u, x)
            moved = image + scale * (at_x - at_start)
            return weighted_rows(moved, [], weights, None).residual + known

        template = set_up(
            Request(
                fn=residual,
                jac=None,
                x0=zeros,
                data=(self.start, (scales[0], known[0])),
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
        table = split_rows((scales, known), None)
        return blocks._replace(table=table, template=template, size=None, valid=None)

    def _known(self, rows: list) -> Float[Array, "c m"]:
        """s_b of some blocks."""
        zeros = jnp.zeros_like(self.all.template.start)
        traced = self.all.template.rows
        weights = self._weights

        def of_block(rows: list) -> Array:
            pieces = _pieces(self.all, self.start, rows)
            value = traced.residuals.value(zeros, pieces)
            return weighted_rows(value, [], weights, None).residual

        return jax.vmap(of_block)(rows)

    @property
    def _chunks(self) -> Chunks:
        """The blocks, as many at a time as are worked on at once."""
        blocks, width = self.all, self.rows * self.start.dtype.itemsize
        size = min(max(CHUNK // width, 1), blocks.table.number)
        return Chunks(blocks.table, size, blocks.valid)

    def _added_up(self, term: Callable, nothing: Array) -> tuple[Array, Array]:
        """The number of blocks, and the sum of a function of chunks of s_b."""

        def add(total: tuple, piece: Piece) -> tuple:
            number, amount = total
            known, counts = self._counted(piece)
            more = jnp.sum(counts).astype(number.dtype)
            return number + more, amount + term(known, counts)

        nothing = varying_with(nothing.astype(self.start.dtype), self.all.like)
        return self._chunks.over(add, (0 * self.start[0], nothing))

    def _counted(self, piece: Piece) -> tuple[Float[Array, "c m"], Bool[Array, " c"]]:
        """s_b of some blocks, zero for those that do not count, and which do."""
        known, counts = self._known(piece.rows), piece.counts
        counts = jnp.ones(len(known), bool) if counts is None else counts
        return jnp.where(counts[:, None], known, 0), counts

    def _root(self, middle: Float[Array, " m"]) -> Float[Array, "m m"]:
        """A square root of the sum of products of S, its columns in the rows."""
        m, locals_number = self.rows, len(self.all.template.start)

        def centred(known: Array, counts: Array) -> Array:
            return jnp.where(counts[:, None], known - middle, 0)

        def products(known: Array, counts: Array) -> Array:
            rows = centred(known, counts)
            return jnp.dot(rows.T, rows, precision=lax.Precision.HIGHEST)

        def by_products() -> Array:
            return jnp.sqrt(jnp.maximum(values, 0))[:, None] * basis.T

        def by_triangles() -> Array:
            def add(triangle: Array, piece: Piece) -> Array:
                stacked = jnp.concatenate([triangle, centred(*self._counted(piece))])
                return jnp.linalg.qr(stacked, mode="r")

            return self._chunks.over(add, 0 * matrix)

        _, matrix = self._added_up(products, jnp.zeros((m, m)))
        values, basis = jnp.linalg.eigh(matrix)
        left = jnp.sum(values[: m - locals_number])
        least = VISIBLE * jnp.finfo(matrix.dtype).eps * jnp.sum(values)
        return lax.cond(left >= least, by_products, by_triangles)

    # After the fit

    def local(self, x: Vector) -> Local:
        """The local parameters of all blocks, by one product."""
        m = self.rows
        scales = jnp.zeros(m + 1, x.dtype).at[m].set(1)
        known = jnp.eye(m + 1, m, dtype=x.dtype)
        units = self._of_blocks(scales, known)
        images = units.minima(x)  # of each residual, and of f(x)

        def add(u: Array, piece: Piece) -> Array:
            part = jnp.dot(
                self._known(piece.rows), images[:m], precision=lax.Precision.HIGHEST
            )
            return lax.dynamic_update_slice_in_dim(u, part, piece.first, 0)

        shape = self.all.table.number, images.shape[1]
        u = varying_with(jnp.zeros(shape, x.dtype), self.all.like)
        u = self._chunks.over(add, u) + images[m]
        is_finite = jnp.all(jnp.isfinite(u), axis=1)
        status = jnp.where(is_finite, Status.COST, Status.NONFINITE_START)
        response = jnp.zeros((*shape, len(x)), x.dtype)
        return Local(u, response, status.astype(jnp.int32))

    def whole(self, lin: Linearization) -> Linearization:
        """What was made of few blocks, counted as of all."""
        template, table = self.all.template, self.all.table
        valid = table.number if self.all.valid is None else self.all.valid
        weights, locals_number = self._weights, len(template.start)
        counted = self.rows if weights is None else jnp.sum(weights != 0)
        parameters = _times(valid, jnp.where(counted > 0, locals_number, 0))
        swept = Swept(lin.held, parameters, jnp.zeros_like(parameters))
        counted = _times(valid, counted)
        if self.all.axes is not None:
            counted, parameters = (
                carried(lax.psum(words, self.all.axes))
                for words in (counted, parameters)
            )
            swept = dataclasses.replace(swept, parameters=parameters)
        return dataclasses.replace(lin, counted=counted, swept=swept)

    def factors(self, x: Vector, frame: Frame, u: Float[Array, "B l"]) -> Factors:
        """What the errors of the local parameters of all blocks are made of.

        The response is affine in u: that to f(x), and that to each number of u.
        """
        eye = identity(u[0])
        units = jnp.concatenate([0 * eye[:1], eye])
        scales = jnp.zeros(len(units), x.dtype).at[0].set(1)
        known = jnp.zeros((len(units), self.rows), x.dtype)
        _, few = self._of_blocks(scales, known).report(x, frame, units)
        number = len(u)
        response = few.response[0] + jnp.einsum("bj,jln->bln", u, few.response[1:])
        return Factors(
            gram=jnp.broadcast_to(few.gram[0], (number, *few.gram.shape[1:])),
            frame=jnp.broadcast_to(few.frame[0], (number, *few.frame.shape[1:])),
            response=response,
            is_used=jnp.broadcast_to(few.is_used[0], (number,)),
            active=jnp.zeros(u.shape, jnp.int32),
        )


def _times(number: Any, each: Any) -> Array:
    """A product of two counts, in words."""
    number, each = jnp.asarray(number, jnp.int32), jnp.asarray(each, jnp.int32)
    high, low = number // COUNT_BASE * each, number % COUNT_BASE * each
    return carried(jnp.stack([high, low]))


def _first(blocks: Blocks) -> list:
    """The arrays of the first block."""
    return [leaf[0] for leaf in blocks.table.rows]


def _pieces(blocks: Blocks, x: Vector, rows: list) -> list:
    """What the residual function of a block's own fit is evaluated on."""
    data, weights = blocks.table.with_rows(rows)
    return whole_rows((x, data), weights).rows
