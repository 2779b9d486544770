"""A table of rows in chunks of one size, visited one after the other."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from jaxfit._linalg.branches import varying_with
from jaxfit._rows.table import RowTable


class Piece(NamedTuple):
    """Some rows of a table, one after the other."""

    rows: list
    counts: Bool[Array, " rows"] | None  # which of them count; None: all
    first: Any = 0  # the place of the first


class Chunks(NamedTuple):
    """All rows, cut into chunks, of which the last may overlap the one before."""

    table: RowTable
    size: int | None  # None: visit all arrays whole, whatever their axes mean
    valid: Int[Array, ""] | None = None  # how many of the first rows count; None: all
    omit: bool = False  # rows with NaN

    @property
    def number_with_valid(self) -> Int[Array, ""]:
        """The number of chunks that have valid rows."""
        rows = self.table.number if self.valid is None else self.valid
        return jnp.asarray(-(-rows // self._size), jnp.int32)

    @property
    def _size(self) -> int:
        """Rows of a chunk."""
        return self.table.number if self.size is None else self.size

    @property
    def is_one(self) -> bool:
        """Whether all rows are one chunk."""
        return self.size is None or self.size == self.table.number

    @property
    def whole(self) -> Piece:
        """All rows as one chunk."""
        if self.size is None:
            return Piece(self.table.rows, None)
        return self.piece(0)

    def over(self, add: Callable, total: PyTree, number: Any = None) -> PyTree:
        """(total, piece) -> total, for one chunk after the other.

        In reverse mode a chunk is evaluated again, instead of kept.

        Args:
            number: of chunks, if not all are to be visited.
        """
        if self.is_one:
            return add(total, self.whole)
        if number is None:
            number = np.int32(-(-self.table.number // self._size))

        def step(i: Any, total: PyTree) -> PyTree:
            return add(total, self.piece(i))

        total = varying_with(total, self.table.rows)
        step = jax.checkpoint(step, prevent_cse=False)
        return lax.fori_loop(np.int32(0), number, step, total)

    def piece(self, chunk: Any) -> Piece:
        """One chunk, and which of its rows count: not those of the chunk before, nor
        rows that are not valid."""
        rows, size = self.table.number, self._size
        index = index_dtype(rows)
        begin = jnp.asarray(chunk, index) * index(size)
        first = jnp.minimum(begin, index(rows - size))
        pieces = [
            lax.dynamic_slice_in_dim(leaf, first, size) for leaf in self.table.rows
        ]
        counts = None
        if rows % size or self.valid is not None:
            end = index(rows) if self.valid is None else self.valid.astype(index)
            place = jnp.arange(size, dtype=index)
            counts = (place >= begin - first) & (place < end - first)
        if self.omit:
            whole = _without_nan(pieces)
            counts = whole if counts is None else counts & whole
        return Piece(pieces, counts, first)


def _without_nan(rows: list[Array]) -> Bool[Array, " rows"]:
    flags = [
        jnp.all(~jnp.isnan(leaf), axis=range(1, leaf.ndim))
        for leaf in rows
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(jnp.logical_and, flags, jnp.ones(len(rows[0]), bool))


def index_dtype(rows: int) -> type:
    """Integers that count so many rows."""
    if rows < 2**31:
        return np.int32
    if jax.dtypes.canonicalize_dtype(np.int64) == np.int64:
        return np.int64
    if rows < 2**32:
        return np.uint32
    raise ValueError(
        f"There are {rows} rows on one device, and JAX counts to 2^32 unless x64 is "
        "on. Turn it on, jax.config.update('jax_enable_x64', True), or use more "
        "devices, or solve_stream."
    )
