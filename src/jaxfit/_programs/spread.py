"""A batch that lies on several devices: each works through its own part.

A compiler that spreads a program over devices knows no parts of a loop over fits, and
would gather all of them everywhere. Here it is told.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import eval_jaxpr
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxfit._programs.arrays import is_extended
from jaxfit._programs.exportable import Dimension
from jaxfit._programs.one_function import is_of_one_device

# (length of the leading axis, arrays, whether they are one device's) -> results
Many = Callable[[int, PyTree, bool], list]


def is_explicit(leaf: Any) -> bool:
    """Whether the type of an array says how it lies on a mesh."""
    return AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def spread(many: Many, length: Dimension, arrays: PyTree) -> list:
    """`many(length, arrays, ...)`, and on several devices of each its own part.

    Args:
        many: what is computed: its arrays and its results have a leading axis of a
            length, or of 1 where all share. It learns whether all lies on one device.
        length: of the leading axis.
        arrays: as they lie on the devices.
    """
    leaves, structure = jax.tree.flatten(arrays)
    if any(map(is_explicit, leaves)):
        return _gathered(many, length, leaves, structure)
    is_for_one = is_of_one_device()
    is_cut = bool(jax.sharding.get_abstract_mesh().manual_axes)  # and not once more
    if is_for_one or is_cut or length == 1 or any(map(is_extended, leaves)):
        return many(length, arrays, is_for_one)
    return _in_compiled_parts(many, length, leaves, structure)


def _gathered(many: Many, length: Dimension, leaves: list, structure: Any) -> list:
    """On all devices the same: arrays whose types say where they lie.

    (A traced function keeps the mesh that it was traced with, and cannot be called
    where that mesh is another, as it is inside of `shard_map`.)
    """
    spec = next((s for leaf in leaves if (s := _leading(leaf)) is not None), None)
    whole = [jax.reshard(leaf, PartitionSpec()) for leaf in leaves]
    out = many(length, jax.tree.unflatten(structure, whole), False)
    return [jax.reshard(leaf, PartitionSpec(spec)) for leaf in out]


def _leading(leaf: Any) -> Any:
    """The axis of the mesh along which the first axis of an array lies."""
    spec = jax.typeof(leaf).sharding.spec
    return spec[0] if len(spec) else None


def _in_compiled_parts(
    many: Many, length: Dimension, leaves: list, structure: Any
) -> list:
    """The parts that the compiler makes, wherever it has put the arrays."""
    is_long = [leaf.shape[0] == length for leaf in leaves]
    is_wide, number = jax.config.jax_enable_x64, len(leaves)

    def local(*leaves: Any) -> list:
        long_leaves = itertools.compress(leaves, is_long)
        length_here = next((leaf.shape[0] for leaf in long_leaves), length)
        arrays = jax.tree.unflatten(structure, leaves[:number])
        with jax.enable_x64(is_wide):
            return many(length_here, arrays, True)

    closed = jax.make_jaxpr(local)(*leaves)
    operands = [*leaves, *closed.consts]

    @custom_partitioning
    def parted(*operands: Any) -> list:
        arrays, constants = operands[:number], operands[number:]
        return eval_jaxpr(closed.jaxpr, constants, *arrays)

    is_long += [False] * len(closed.consts)

    def partition(mesh: Any, arguments: Sequence, results: Sequence) -> tuple:
        long_arguments = itertools.compress(arguments, is_long)
        lead = next(filter(None, map(_lead, [*results, *long_arguments])), None)
        mesh = mesh if lead else Mesh(_devices(arguments[0]), ("all",))
        parts, whole = (
            NamedSharding(mesh, PartitionSpec(axis)) for axis in (lead, None)
        )
        taken = tuple(parts if is_part else whole for is_part in is_long)
        return mesh, local, [parts] * len(results), taken

    rule, whole = _rule(operands, is_long, closed.out_avals)
    parted.def_partition(
        partition=partition, sharding_rule=rule, need_replication_factors=whole
    )
    return parted(*operands)


def _lead(leaf: Any) -> Any:
    """The axis of the mesh along which the compiler has put the first of an array."""
    if not isinstance(leaf.sharding, NamedSharding):
        return None
    spec = leaf.sharding.spec
    return spec[0] if len(spec) else None


def _devices(leaf: Any) -> np.ndarray:
    return np.array(sorted(leaf.sharding.device_set, key=lambda device: device.id))


def _rule(leaves: list, is_long: list[bool], results: list) -> tuple[str, tuple]:
    """How arrays may lie: the leading axis anyhow, all others whole."""
    names, whole = (f"i{k}" for k in itertools.count()), []

    def mapping(leaf: Any, is_long: bool) -> str:
        axes = list(itertools.islice(names, len(leaf.shape)))
        if is_long:
            axes[0] = "b"
        whole.extend(name for name in axes if name != "b")
        return " ".join(axes)

    taken = ", ".join(map(mapping, leaves, is_long))
    results_text = ", ".join(mapping(leaf, True) for leaf in results)
    return f"{taken} -> {results_text}", tuple(whole)
