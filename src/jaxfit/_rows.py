"""How residual rows are visited: all at once, in chunks, on many devices.

Each way is a function (x, frame) -> `Linearization` for the loop of `_solve.py`. What
it returns is the sum over all rows, so that the fit is the same whichever is chosen.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxfit._devices import of_first, on_each_device, over_devices, place
from jaxfit._linearize import (
    Frame,
    Linearization,
    RunningSum,
    is_linear,
    reduce_rows,
)
from jaxfit._observed import Observed, split_rows, unwrap_shared
from jaxfit._residuals import Residuals, row_vector, trace_residuals, weight_vector
from jaxfit._small import Vector, varying_with
from jaxfit.losses import Loss

# A chunk has the largest power of two of rows, within limits, whose residuals and
# columns take no more memory than this.
CPU_BYTES, OTHER_BYTES = 2**22, 2**28
CPU_SIZES, OTHER_SIZES = (2**10, 2**16), (2**16, 2**24)


class Whole(eqx.Module):
    """Visit all residual rows at once: the right choice while they fit in memory."""


class Chunked(eqx.Module):
    """Visit the rows chunk by chunk: memory beyond the data is that of one chunk.

    Every leaf of `data` and `weights` and every residual array has the rows as its
    leading axis, and `fn` treats rows independently; a leaf that is not rows is wrapped
    as `Shared(leaf)`. The answer is that of `Whole()` but for rounding, and the sums
    over chunks are compensated, so that it does not get worse with their number.

    Args:
        size: rows of a chunk; the last one may be shorter. None is a size that is fast
            on this kind of device.
    """

    size: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        _check_size(self.size)


def _check_size(size):
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"size is {size!r}; give a whole number of rows, at least 1.")


class Sharded(eqx.Module):
    """Every device visits its own rows, and only n x n numbers cross between devices.

    Data and weights as for `Chunked`; their rows lie along one axis of a mesh of
    devices, of one host or of many (`jax.distributed`). What does not divide evenly is
    filled up with rows that do not count. All devices take the steps of the first, so
    that also hosts that round differently take the same number of them.

    Args:
        mesh: the devices; None inside a `jax.shard_map` over `axis`, where `solve` sees
            the rows of one device.
        axis: the name of the axis, or a tuple of names.
        size: rows of a chunk, as in `Chunked`; None visits the rows of a device whole.
        counts: from `place`: how many rows of each device count; None: all.
    """

    mesh: Mesh | None = eqx.field(static=True)
    axis: str | tuple[str, ...] = eqx.field(static=True)
    size: int | None = eqx.field(default=None, static=True)
    counts: Int[Array, " devices"] | None = None

    def __check_init__(self):
        _check_size(self.size)
        if self.mesh is None:
            return
        if not isinstance(self.mesh, Mesh):
            raise TypeError(f"mesh is {self.mesh!r}; expected a jax.sharding.Mesh.")
        unknown = [name for name in self.axes if name not in self.mesh.axis_names]
        if unknown:
            raise ValueError(
                f"axis is {self.axis!r}; give an axis of the mesh, one of "
                f"{self.mesh.axis_names}, or a tuple of them."
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes."""
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def place(
        self, data: PyTree, weights: PyTree | None = None
    ) -> tuple["Sharded", PyTree, PyTree | None]:
        """Put rows on the devices of the mesh, an equal number on each.

        Of several processes each gives its own rows, which go to its own devices; their
        number may differ. Every process has to call this.

        Args:
            data, weights: arrays on the host, `numpy.memmap`s for example; only the
                rows of one device are read at a time.

        Returns:
            what to pass on to `solve`: this with the number of rows that count on each
            device, data, and weights.
        """
        observed = split_rows(data, weights)
        counts, rows = place(self.mesh, self.axes, observed)
        placed = dataclasses.replace(self, counts=counts)
        return placed, *observed.marked(rows, observed.shared)


# Ways to visit


class Task(NamedTuple):
    """What is evaluated on the rows."""

    fn: Callable
    jac: Any
    unravel: Callable
    loss: Loss | None


class Visit(NamedTuple):
    """A pass over all rows."""

    linearize: Callable[[Vector, Frame], Linearization]
    residuals: Residuals
    weights: Float[Array, " m"] | None = None  # if the rows are visited whole
    agreed: Callable[[PyTree], PyTree] = lambda tree: tree  # on all devices


def visit(
    rows: Whole | Chunked | Sharded | None,
    task: Task,
    data: PyTree,
    weights: PyTree | None,
    x: Vector,
) -> Visit:
    """The way that `rows` names, for parameters like x."""
    if rows is None or isinstance(rows, Whole):
        return _visit_whole(task, *unwrap_shared((data, weights)), x)
    observed = split_rows(data, weights)
    if observed.number == 0:
        raise ValueError("The data have no rows; a fit needs at least one residual.")
    if isinstance(rows, Chunked):
        size = rows.size or default_size(observed, len(x), x.dtype)
        return _visit_chunks(cut(task, observed, x, size))
    size = rows.size or observed.number
    valid = None if rows.counts is None else rows.counts[0]
    one = _visit_chunks(cut(task, observed, x, size, valid))
    agreed = functools.partial(of_first, rows.axis)

    def linearize(point, frame):
        part = one.linearize(*varying_with((point, frame), x))
        return over_devices(rows.axis, dataclasses.replace(part, frame=frame.inverse))

    return Visit(linearize, one.residuals, agreed=agreed)


def _visit_whole(task: Task, data, weights, x: Vector) -> Visit:
    def on_data(fn):
        return (lambda parameters: fn(parameters, data)) if callable(fn) else fn

    residuals = trace_residuals(
        *(on_data(task.fn), on_data(task.jac), task.unravel, x),
        is_masked=weights is not None,
    )
    if weights is not None:
        weights = weight_vector(weights, residuals.structure, x.dtype)

    def linearize(x, frame):
        rows = residuals.evaluate(x, frame.directions)
        return reduce_rows(*rows, weights, task.loss, frame)

    return Visit(linearize, residuals, weights)


def _visit_chunks(chunks: "Chunks") -> Visit:
    def linearize(x, frame):
        nothing = RunningSum.of_nothing(x, frame.inverse, is_linear(chunks.loss))
        return chunks.add_to(nothing, x, frame).total()

    return Visit(linearize, chunks.residuals)


# Chunks


class Chunks(NamedTuple):
    """Rows cut into chunks of one size; the last may overlap the one before."""

    observed: Observed
    size: int
    valid: Int[Array, ""] | None  # how many of the first rows count; None: all
    residuals: Residuals  # of one chunk
    loss: Loss | None
    omit: bool = False  # rows with NaN

    def add_to(self, running: RunningSum, x: Vector, frame: Frame) -> RunningSum:
        """A sum with all chunks added to it."""
        rows, index = self.observed.number, index_dtype(self.observed.number)
        if self.size == rows:
            return running.plus(self._linearization(index(0), x, frame))
        number = -(-rows // self.size)
        if self.valid is not None:
            number = -(-self.valid.astype(index) // index(self.size))
        running = varying_with(running, (x, self.observed.rows))

        def add(chunk, running):
            return running.plus(self._linearization(chunk, x, frame))

        return lax.fori_loop(index(0), jnp.asarray(number, index), add, running)

    def _linearization(self, chunk, x, frame) -> Linearization:
        """Of one chunk, without the rows of the chunk before and those not valid."""
        rows, size, index = self.observed.number, self.size, chunk.dtype.type
        begin = chunk * index(size)
        first = jnp.minimum(begin, index(rows - size))
        pieces = [
            lax.dynamic_slice_in_dim(leaf, first, size) for leaf in self.observed.rows
        ]
        counts = None
        if rows % size or self.valid is not None:
            end = index(rows) if self.valid is None else self.valid.astype(index)
            place = jnp.arange(size, dtype=index)
            counts = (place >= begin - first) & (place < end - first)
        if self.omit:
            whole = _without_nan(pieces)
            counts = whole if counts is None else counts & whole
        if counts is not None:
            counts = row_vector(counts, self.residuals.structure)
        return self.of_pieces(pieces, x, frame, counts)

    def of_pieces(
        self, pieces: list[Array], x: Vector, frame: Frame, counts=None
    ) -> Linearization:
        """Of so many rows as a chunk has.

        Args:
            counts: which of the residuals count; None: all.
        """
        _, weights = self.observed.with_rows(pieces)
        if weights is not None:
            weights = weight_vector(weights, self.residuals.structure, x.dtype)
        residual, columns = self.residuals.evaluate(x, frame.directions, pieces)
        return reduce_rows(residual, columns, weights, self.loss, frame, counts)


def _without_nan(rows: list[Array]) -> Bool[Array, " rows"]:
    flags = [
        jnp.all(~jnp.isnan(leaf), axis=range(1, leaf.ndim))
        for leaf in rows
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return functools.reduce(jnp.logical_and, flags, jnp.ones(len(rows[0]), bool))


def cut(
    task: Task, observed: Observed, x: Vector, size: int, valid=None, omit: bool = False
) -> Chunks:
    """Cut rows into chunks, and trace the residual function on one."""
    size = min(size, observed.number)
    is_masked = observed.number % size != 0 or valid is not None or omit

    def on_piece(fn):
        if not callable(fn):
            return fn
        return lambda parameters, piece: fn(parameters, observed.with_rows(piece)[0])

    residuals = trace_residuals(
        *(on_piece(task.fn), on_piece(task.jac), task.unravel, x),
        [leaf[:size] for leaf in observed.rows],
        is_masked=is_masked or observed.has_weights,
    )
    for path, leaf in jax.tree.leaves_with_path(residuals.structure):
        if leaf.shape[:1] != (size,):
            raise ValueError(
                f"fn(x, data){jax.tree_util.keystr(path)} has the shape {leaf.shape} "
                f"for {size} rows of data. Where rows are visited in parts, every "
                "residual array has the rows as its leading axis."
            )
    return Chunks(observed, size, valid, residuals, task.loss, omit)


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


def default_size(observed: Observed, n: int, dtype) -> int:
    """So many rows that they stay in cache, or keep the device busy."""
    on_cpu = jax.default_backend() == "cpu"
    room, (fewest, most) = (
        (CPU_BYTES, CPU_SIZES) if on_cpu else (OTHER_BYTES, OTHER_SIZES)
    )
    width = max(math.prod(leaf.shape[1:]) for leaf in observed.rows)
    size = room // (max(width, 1) * (n + 2) * np.dtype(dtype).itemsize)
    return min(max(1 << max(size, 1).bit_length() - 1, fewest), most)


# All devices


def on_mesh(
    rows: Sharded, fit: Callable, data: PyTree, weights: PyTree | None, others: PyTree
) -> PyTree:
    """A fit on the devices of a mesh.

    Args:
        fit: (data, weights, others, rows) -> its result, where `rows` visits those of
            one device.
        data, weights: with all rows.
        others: what every device has.
    """

    def on_device(data, weights, counts, others):
        return fit(data, weights, others, Sharded(None, rows.axis, rows.size, counts))

    observed = split_rows(data, weights)
    return on_each_device(
        rows.mesh, rows.axes, rows.counts, on_device, observed, others
    )


def placed(rows: Sharded, data: PyTree, weights: PyTree | None):
    """Arrays of one process that lie elsewhere, on the devices of the mesh."""
    leaves = jax.tree.leaves((data, weights))
    if rows.mesh is None or jax.process_count() > 1 or rows.counts is not None:
        return rows, data, weights
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return rows, data, weights
    return rows.place(data, weights)
