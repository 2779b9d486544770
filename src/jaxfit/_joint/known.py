"""What blocks that differ in their data alone have for themselves, and what a fit sees.

The residuals of block b are A(x) u + f(x) + s_b (see `compress.py`), and s_b is what
they are at the start, at u = 0. A fit sees N, the sum of s_b, and the matrix of their
products. These are added up in one pass about a centre c that is near enough, the mean
of the first blocks, without loss, and moved to the mean s̄ afterwards:

    Σ (s_b - s̄)(s_b - s̄)ᵀ = Σ (s_b - c)(s_b - c)ᵀ - N (s̄ - c)(s̄ - c)ᵀ.

Where what any fit must leave of it would drown in the rounding of the products, a
triangle is made of the rows (s_b - s̄) themselves, in another pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxfit._joint.blocks import Blocks
from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import Vector
from jaxfit._rows.chunks import Chunks, Piece
from jaxfit._rows.linearization import lost_in_sum
from jaxfit._rows.reduction import weighted_rows
from jaxfit._rows.residuals import Evaluated
from jaxfit._rows.table import whole_rows

# Of all products the part that every fit must leave, in units of rounding: above it
# the cost keeps ten digits.
VISIBLE = 1e10

CHUNK = 2**26  # bytes of known residuals that are worked on at once


class Moments(NamedTuple):
    """The number of blocks, and sums over them about a centre."""

    centre: Float[Array, " m"]
    number: Float[Array, ""]
    total: Float[Array, " m"]  # of s_b - c
    products: Float[Array, "m m"]
    lost: tuple[Array, ...]  # what rounding took from both, as in `RunningSum`

    @classmethod
    def of_nothing(cls, size: int, zero: Float[Array, ""]) -> "Moments":
        """The moments of no blocks, which have so many residuals each."""
        zeros = jnp.zeros(size, zero.dtype) + zero
        matrix = jnp.zeros((size, size), zero.dtype) + zero
        return cls(zeros, zero, zeros, matrix, (zeros, matrix))

    def plus(self, known: Float[Array, "c m"], counts: Bool[Array, " c"]) -> "Moments":
        """The moments with those of more blocks."""
        rows = jnp.where(counts[:, None], known - self.centre, 0)
        old = self.total, self.products
        new = jnp.sum(rows, axis=0), _products(rows)
        total, products = added = (old[0] + new[0], old[1] + new[1])
        lost = tuple(map(lost_in_sum, self.lost, old, new, added))
        number = self.number + jnp.sum(counts).astype(self.number.dtype)
        return Moments(self.centre, number, total, products, lost)

    @property
    def _shift(self) -> Float[Array, " m"]:
        """From the centre to the mean."""
        return (self.total + self.lost[0]) / jnp.maximum(self.number, 1)

    @property
    def middle(self) -> Float[Array, " m"]:
        """The mean of s_b."""
        return self.centre + self._shift

    def root(self, local_parameters: int) -> "Root":
        """A square root of the sum of products about the mean.

        Args:
            local_parameters: of a block, as many as a fit can take away from it.
        """
        about_centre = self.products + self.lost[1]
        shift = self._shift
        about_mean = about_centre - self.number * shift[:, None] * shift
        values, basis = jnp.linalg.eigh(about_mean)
        left = jnp.sum(values[: len(shift) - local_parameters])
        eps = jnp.finfo(values.dtype).eps
        return Root(
            matrix=jnp.sqrt(jnp.maximum(values, 0))[:, None] * basis.T,
            has_digits=left >= VISIBLE * eps * jnp.trace(about_centre),
        )


class Root(NamedTuple):
    """A square root of a matrix, its columns in the rows."""

    matrix: Float[Array, "m m"]
    has_digits: Bool[Array, ""]  # what is left after any fit can be seen in it


class Known(NamedTuple):
    """The residuals of blocks at the start of a fit, at u = 0: s_b."""

    blocks: Blocks
    start: Vector  # x

    @property
    def size(self) -> int:
        """Residuals of a block."""
        return self.blocks.template.rows.residuals.number

    @property
    def weights(self) -> Float[Array, " m"] | None:
        """Those of the residuals of every block."""
        shared = pieces(self.blocks, self.start, first_of(self.blocks))
        return self.blocks.template.rows.weights(shared, self.start.dtype)

    @property
    def chunks(self) -> Chunks:
        """The blocks, as many at a time as are worked on at once."""
        width = self.size * self.start.dtype.itemsize
        size = min(max(CHUNK // width, 1), self.blocks.table.number)
        return Chunks(self.blocks.table, size, self.blocks.valid)

    def moments(self) -> Moments:
        """The moments of all blocks."""
        return self.added_to(Moments.of_nothing(self.size, 0 * self.start[0]))

    def added_to(self, moments: Moments) -> Moments:
        """Moments with those of these blocks; the first give the centre."""
        moments = varying_with(moments, self.blocks.like)
        first = self.chunks.whole if self.chunks.is_one else self.chunks.piece(0)

        def mean() -> Array:
            known, counts = self._counted(first)
            number = jnp.sum(counts).astype(known.dtype)
            return jnp.sum(known, axis=0) / jnp.maximum(number, 1)

        is_first = moments.number == 0
        centre = lax.cond(is_first, mean, lambda: moments.centre)

        def add(moments: Moments, piece: Piece) -> Moments:
            return moments.plus(*self._counted(piece))

        return self.chunks.over(add, moments._replace(centre=centre))

    def triangle(
        self, triangle: Float[Array, "m m"], middle: Float[Array, " m"]
    ) -> Float[Array, "m m"]:
        """The triangle R of a QR factorisation, with more rows s_b - s̄ below it."""

        def add(triangle: Array, piece: Piece) -> Array:
            known, counts = self._counted(piece)
            rows = jnp.where(counts[:, None], known - middle, 0)
            return jnp.linalg.qr(jnp.concatenate([triangle, rows]), mode="r")

        return self.chunks.over(add, triangle)

    def times(self, images: Float[Array, "m l"]) -> Float[Array, "B l"]:
        """The products of all s_b with a matrix."""

        def add(all_products: Array, piece: Piece) -> Array:
            part = jnp.dot(
                self._of_rows(piece.rows), images, precision=lax.Precision.HIGHEST
            )
            return lax.dynamic_update_slice_in_dim(all_products, part, piece.first, 0)

        shape = self.blocks.table.number, images.shape[1]
        zeros = varying_with(jnp.zeros(shape, images.dtype), self.blocks.like)
        return self.chunks.over(add, zeros)

    def _of_rows(self, rows: list) -> Float[Array, "c m"]:
        """s_b of some blocks."""
        zeros = jnp.zeros_like(self.blocks.template.start)
        residuals, weights = self.blocks.template.rows.residuals, self.weights

        def of_block(rows: list) -> Array:
            value = residuals.value(zeros, pieces(self.blocks, self.start, rows))
            return weighted_rows(Evaluated.of_residuals(value, weights)).residual

        return jax.vmap(of_block)(rows)

    def _counted(self, piece: Piece) -> tuple[Float[Array, "c m"], Bool[Array, " c"]]:
        """s_b of some blocks, zero for those that do not count, and which do."""
        known, counts = self._of_rows(piece.rows), piece.counts
        counts = jnp.ones(len(known), bool) if counts is None else counts
        return jnp.where(counts[:, None], known, 0), counts


def _products(rows: Float[Array, "c m"]) -> Float[Array, "m m"]:
    return jnp.dot(rows.T, rows, precision=lax.Precision.HIGHEST)


def first_of(blocks: Blocks) -> list:
    """The arrays of the first block."""
    return [leaf[0] for leaf in blocks.table.rows]


def pieces(blocks: Blocks, x: Vector, rows: list) -> list:
    """What the residual function of a block's own fit is evaluated on."""
    data, weights = blocks.table.with_rows(rows)
    return whole_rows((x, data), weights).rows
