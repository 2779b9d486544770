"""The ways to visit residual rows, as users name them."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from jaxfit._rows.devices import place
from jaxfit._rows.table import split_rows


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


def _check_size(size: Any) -> None:
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
        if self.mesh is None:
            raise ValueError("Sharded(None, ...) has no mesh to place rows on.")
        table = split_rows(data, weights)
        counts, rows = place(self.mesh, self.axes, table)
        placed = dataclasses.replace(self, counts=counts)
        return placed, *table.marked(rows, table.shared)


def distributed(
    rows: Sharded, data: PyTree, weights: PyTree | None
) -> tuple[Sharded, PyTree, PyTree | None]:
    """Arrays of one process that lie elsewhere, on the devices of the mesh."""
    leaves = jax.tree.leaves((data, weights))
    if rows.mesh is None or jax.process_count() > 1 or rows.counts is not None:
        return rows, data, weights
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return rows, data, weights
    return rows.place(data, weights)
