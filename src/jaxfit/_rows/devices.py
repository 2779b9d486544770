"""Rows on many devices: each reduces its own, and n x n numbers cross.

The steps of a fit are computed on every device from the same sums, and agreed on after
each trip: nothing that has the length of the rows is ever gathered.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from jaxfit._rows.linearization import Linearization, Sums, carried, sums, with_sums
from jaxfit._rows.table import RowTable, lengthened


def over_devices(axis: str | tuple[str, ...], lin: Linearization) -> Linearization:
    """The sum over all devices: one triangle crosses for each matrix."""
    numbers, counts = sums(lin)
    parts = [_triangle(part) if part.ndim else part[None] for part in numbers]
    crossing = lax.psum(jnp.concatenate(parts), axis)
    ends = np.cumsum([len(part) for part in parts])
    totals = [
        _square(crossing[end - len(part) : end], len(whole))
        if whole.ndim
        else crossing[end - 1]
        for end, part, whole in zip(ends, parts, numbers, strict=True)
    ]
    counted = [carried(words) for words in lax.psum(counts, axis)]
    of_all = Sums(tuple(totals), tuple(counted))
    return with_sums(lin, of_all, lax.pmax(lin.influence, axis))


def _triangle(matrix: Float[Array, "n n"]) -> Float[Array, " k"]:
    return matrix[np.tril_indices(len(matrix))]


def _square(triangle: Float[Array, " k"], n: int) -> Float[Array, "n n"]:
    rows, columns = np.tril_indices(n)
    place = np.zeros((n, n), int)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    return triangle[place]


def of_first(axis: str | tuple[str, ...], tree: PyTree) -> PyTree:
    """What the first device has, on all: also where hosts round differently they take
    the same steps, and the same number of them."""
    is_first = lax.axis_index(axis) == 0
    leaves, structure = jax.tree.flatten(tree)
    kinds: dict = {}
    for place, leaf in enumerate(leaves):
        kind = leaf.dtype if leaf.dtype != bool else jnp.dtype(np.int32)
        kinds.setdefault(kind, []).append(place)
    for kind, places in kinds.items():
        flat = [jnp.ravel(leaves[place]).astype(kind) for place in places]
        flat = jnp.concatenate(flat)
        flat = lax.psum(jnp.where(is_first, flat, 0), axis)
        ends = np.cumsum([leaves[place].size for place in places])
        for end, place in zip(ends, places, strict=True):
            leaf = leaves[place]
            part = flat[end - leaf.size : end].reshape(leaf.shape)
            leaves[place] = part.astype(leaf.dtype)
    return jax.tree.unflatten(structure, leaves)


def on_each_device(
    mesh: Mesh,
    axes: tuple[str, ...],
    counts: Int[Array, " devices"] | None,
    fit: Callable,
    table: RowTable,
    shared_tree: PyTree,
    out_specs: Any = None,
) -> PyTree:
    """A fit that runs on all devices of a mesh at once.

    Args:
        mesh, axes: where the rows lie.
        counts: how many rows of each device count; None: all.
        fit: (data, weights, counts, shared_tree) -> what is the same on all devices.
        table: all rows.
        shared_tree: what every device has.
        out_specs: where the results lie; None: they are the same on all devices.
    """
    devices = math.prod(mesh.shape[axis] for axis in axes)
    share = -(-table.number // devices)
    extra = share * devices - table.number
    if extra:
        counts = jnp.clip(table.number - share * np.arange(devices), 0, share)

    def on_device(
        rows: list, counts: Array | None, shared: list, shared_tree: PyTree
    ) -> PyTree:
        return fit(*table.marked(rows, shared), counts, shared_tree)

    specs = P(axes), P(axes), P(), P()
    rows = [lengthened(leaf, extra) for leaf in table.rows]
    arguments: tuple = rows, counts, table.shared, shared_tree
    if AxisType.Explicit in mesh.axis_types:
        arguments = tuple(
            jax.reshard(tree, NamedSharding(mesh, spec))
            for tree, spec in zip(arguments, specs, strict=True)
        )
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=specs,
        out_specs=out_specs or P(),
        check_vma=False,
    )(*arguments)


def place(
    mesh: Mesh, axes: tuple[str, ...], table: RowTable
) -> tuple[Int[Array, " devices"] | None, list[Array]]:
    """The rows of each process on its own devices of a mesh.

    Returns:
        how many rows of each device count (None: all), and the arrays of rows.
    """
    # which devices are of this process, and which slot of the rows each has
    sharding = NamedSharding(mesh, P(axes))
    devices = math.prod(mesh.shape[axis] for axis in axes)
    places = sharding.addressable_devices_indices_map((devices,))
    slots = {
        device: index[0].start or 0
        for device, index in places.items()
        if index is not None
    }
    local_slots = sorted(set(slots.values()))
    # equal shares, as large as the largest that any process needs
    numbers = _of_all_processes(np.array([table.number, len(local_slots)]))
    share = int(np.max(-(-numbers[:, 0] // numbers[:, 1])))

    def spread(pieces: list) -> Array:
        """One array of the pieces of the devices."""
        arrays = [
            jax.device_put(pieces[local_slots.index(slot)], device)
            for device, slot in slots.items()
        ]
        shape = devices * len(pieces[0]), *pieces[0].shape[1:]
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)

    def placed(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(
            sharding, leaf.ndim
        ):
            return leaf
        pieces = (leaf[j * share : (j + 1) * share] for j in range(len(local_slots)))
        return spread([lengthened(piece, share - len(piece)) for piece in pieces])

    # what fills a share up does not count
    counts = None
    if np.any(numbers[:, 0] != share * numbers[:, 1]):
        begins = share * np.arange(len(local_slots))
        counts = np.clip(table.number - begins, 0, share).astype(np.int32)
        counts = spread(list(counts[:, None]))
    return counts, [placed(leaf) for leaf in table.rows]


def _of_all_processes(numbers: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return numbers[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(numbers)
