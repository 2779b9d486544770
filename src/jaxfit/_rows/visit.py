"""How residual rows are visited: all at once, in chunks, on many devices.

Each way is a function (x, frame) -> `Linearization` for the loop of `_core/fit.py`.
What it returns is the sum over all rows, so that the fit is the same whichever is
chosen.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import Matrix, Scalar, Vector, identity
from jaxfit._programs.memory import Budget, budget
from jaxfit._programs.one_function import can_be_one_function, holds
from jaxfit._rows.chunks import Chunks, Piece
from jaxfit._rows.devices import of_first, over_devices
from jaxfit._rows.linearization import Frame, Linearization, RunningSum
from jaxfit._rows.predictions import kind_of
from jaxfit._rows.reduction import cost_of, reduce_rows, scaled_for_loss
from jaxfit._rows.residuals import (
    Evaluated,
    Residuals,
    row_vector,
    trace_residuals,
    weight_vector,
)
from jaxfit._rows.table import RowTable, split_rows, whole_rows
from jaxfit._rows.ways import Chunked, Sharded, Whole
from jaxfit.losses import Likelihood, Loss

# A chunk has the largest power of two of rows, within limits, whose residuals and
# columns take no more memory than this.
CPU, OTHER = Budget(2**22, 2**10, 2**16), Budget(2**28, 2**16, 2**24)


# Ways to visit


class ResidualModel(NamedTuple):
    """What is evaluated on the rows."""

    fn: Callable
    jac: Any
    unravel: Callable
    loss: Loss | Likelihood | None


def visit(
    rows: Whole | Chunked | Sharded | None,
    model: ResidualModel,
    data: PyTree,
    weights: PyTree | None,
    x: Vector,
) -> "Rows":
    """The way that `rows` names, for parameters like x."""
    if rows is None or isinstance(rows, Whole):
        return trace_rows(model, whole_rows(data, weights), x, None)
    table = split_rows(data, weights)
    if table.number == 0:
        raise ValueError("The data have no rows; a fit needs at least one residual.")
    if isinstance(rows, Chunked):
        size = rows.size or default_size(table, len(x), x.dtype)
        return trace_rows(model, table, x, size)
    size = rows.size or table.number
    valid = None if rows.counts is None else rows.counts[0]
    traced = trace_rows(model, table, x, size, valid)
    return traced._replace(axes=rows.axes, like=x)


class Chunk(NamedTuple):
    """Some rows."""

    pieces: list
    counts: Bool[Array, " m"] | None  # which of their residuals count; None: all


class Rows(NamedTuple):
    """All rows, and the functions of them that a fit asks for.

    They are cut into chunks of one size, of which the last may overlap the one before.
    A pytree: what is an array in it may be replaced by another.
    """

    table: RowTable
    residuals: Residuals  # of one chunk
    loss: Loss | Likelihood | None
    size: int | None  # None: visit all arrays whole, whatever their axes mean
    valid: Int[Array, ""] | None = None  # how many of the first rows count; None: all
    omit: bool = False  # rows with NaN
    axes: tuple[str, ...] | None = None  # of the devices that have the other rows
    like: Vector | None = None  # varies over devices as the rows do

    def linearize(self, x: Vector, frame: Frame) -> Linearization:
        """The linearization of all rows."""
        varied = varying_with((x, frame), self.like)
        if self.chunks.is_one:
            lin = self._linearization(self._chunk(self.chunks.whole), *varied)
        else:
            inverse = varied[1].inverse
            nothing = RunningSum.of_nothing(varied[0], inverse, kind_of(self.loss))
            lin = self.add_to(nothing, *varied).total()
        if self.axes is None:
            return lin
        return over_devices(self.axes, dataclasses.replace(lin, frame=frame.inverse))

    def slope(self, x: Vector) -> Vector:
        """The gradient of the cost by reverse mode, which derivatives of every kind
        can be taken of."""
        slope = jax.grad(self.cost)(varying_with(x, self.like))
        return slope if self.axes is None else lax.psum(slope, self.axes)

    def cost(self, x: Vector) -> Scalar:
        """Half the sum of the loss, over the rows of this device."""

        def add(total: Array, chunk: Chunk) -> Array:
            weights = self.weights(chunk.pieces, x.dtype)
            counts = chunk.counts
            if weights is not None:
                counts = weights != 0 if counts is None else counts & (weights != 0)
            rows = self.residuals.costs(x, counts, chunk.pieces)
            return total + cost_of(rows._replace(weights=weights), self.loss, counts)

        return self._over_chunks(add, 0 * x[0])

    def evaluated(
        self, x: Vector, directions: Matrix, most: Scalar | None = None
    ) -> Evaluated:
        """Residuals and derivatives of rows whole."""
        pieces = self.chunks.whole.rows
        rows = self.residuals.evaluate(x, directions, pieces, most=most)
        return rows._replace(weights=self.weights(pieces, x.dtype))

    def residual_and_jacobian(self, x: Vector) -> tuple[Array, Array]:
        """The weighted residuals (m,), and J_s, the Jacobian (m, n) with rows scaled
        for the loss, of rows whole."""
        rows = self.evaluated(x, identity(x))
        return scaled_for_loss(rows, self.loss)

    def agreed(self, tree: PyTree) -> PyTree:
        """What all devices go on with."""
        return tree if self.axes is None else of_first(self.axes, tree)

    def add_to(
        self, running: RunningSum, x: Vector, frame: Frame, number: Any = None
    ) -> RunningSum:
        """A sum with the linearizations of chunks of this device added to it.

        Args:
            number: of chunks, if not all are to be visited.
        """

        def add(running: RunningSum, chunk: Chunk) -> RunningSum:
            return running.plus(self._linearization(chunk, x, frame))

        return self._over_chunks(add, running, number)

    @property
    def _has_known_loss(self) -> bool:
        return self.loss is None or type(self.loss).__module__.startswith(
            "jaxfit.losses."
        )

    @property
    def is_smooth(self) -> bool:
        """Whether the cost can have no kink. (Our losses have a continuous slope.)"""
        return self._has_known_loss and self.residuals.is_smooth

    def can_be_one_function(self, x: Vector) -> bool:
        """Whether a visit of all rows at once holds but what was tried."""
        whole = self.size is None and self.axes is None
        if not (whole and self.residuals.can_be_one_function(len(x))):
            return False
        # a rule of derivatives and a likelihood are seen so
        is_likelihood = isinstance(self.loss, Likelihood)
        if is_likelihood or holds(self.residuals.jaxpr, "custom_jvp_call"):
            rows = jax.make_jaxpr(lambda x: self.evaluated(x, identity(x)))(x)
            if not can_be_one_function(rows.jaxpr, 1):
                return False
        if self._has_known_loss or is_likelihood:
            return True
        number = self.residuals.number
        assert self.loss is not None
        jaxpr = jax.make_jaxpr(self.loss.evaluate)(jnp.ones(number, x.dtype)).jaxpr
        return can_be_one_function(jaxpr, 1)

    def in_columns(self, choice: bool) -> "Rows":
        """The rows with or without short arrays as columns: `_programs/short.py`."""
        return self._replace(residuals=self.residuals._replace(in_columns=choice))

    @property
    def chunks(self) -> Chunks:
        """The rows in chunks."""
        return Chunks(self.table, self.size, self.valid, self.omit)

    def _over_chunks(self, add: Callable, total: PyTree, number: Any = None) -> PyTree:
        """(total, chunk) -> total, for one chunk after the other."""

        def added(total: PyTree, piece: Piece) -> PyTree:
            return add(total, self._chunk(piece))

        return self.chunks.over(added, total, number)

    def _chunk(self, piece: Piece) -> Chunk:
        """A piece of the rows, and which of its residuals count."""
        counts = piece.counts
        if counts is not None:
            counts = row_vector(counts, self.residuals.structure)
        return Chunk(piece.rows, counts)

    def _linearization(self, chunk: Chunk, x: Vector, frame: Frame) -> Linearization:
        pieces, directions = chunk.pieces, frame.directions
        rows = self.residuals.evaluate(x, directions, pieces, most=frame.most)
        rows = rows._replace(weights=self.weights(pieces, x.dtype))
        return reduce_rows(rows, self.loss, frame, chunk.counts)

    def weights(self, pieces: list, dtype: Any) -> Float[Any, " m"] | None:
        """The weights of the residuals of a chunk."""
        _, weights = self.table.with_rows(pieces)
        if weights is None:
            return None
        return weight_vector(weights, self.residuals.structure, dtype)


def trace_rows(
    model: ResidualModel,
    table: RowTable,
    x: Vector,
    size: int | None,
    valid: Int[Array, ""] | None = None,
    omit: bool = False,
) -> Rows:
    """Cut rows into chunks, and trace the residual function on one; see `Rows`."""
    pieces, is_masked = table.rows, table.has_weights
    if size is not None:
        size = min(size, table.number)
        pieces = [leaf[:size] for leaf in pieces]
        is_masked |= table.number % size != 0 or valid is not None or omit

    def on_piece(fn: Any) -> Any:
        if not callable(fn):
            return fn
        return lambda parameters, piece: fn(parameters, table.with_rows(piece)[0])

    residuals = trace_residuals(
        on_piece(model.fn),
        on_piece(model.jac),
        model.unravel,
        model.loss,
        x,
        pieces,
        is_masked=is_masked,
    )
    for path, leaf in jax.tree.leaves_with_path(residuals.structure):
        if size is not None and leaf.shape[:1] != (size,):
            raise ValueError(
                f"fn(x, data){jax.tree_util.keystr(path)} has the shape {leaf.shape} "
                f"for {size} rows of data. Where rows are visited in parts, every "
                "residual array has the rows as its leading axis."
            )
    return Rows(table, residuals, model.loss, size, valid, omit)


def default_size(table: RowTable, n: int, dtype: Any) -> int:
    """So many rows that they stay in cache, or keep the device busy."""
    width = max(math.prod(leaf.shape[1:]) for leaf in table.rows)
    return budget(CPU, OTHER).holds(width * (n + 2) * np.dtype(dtype).itemsize)
