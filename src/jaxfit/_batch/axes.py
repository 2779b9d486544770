"""Many fits as a pytree of what differs among them and a pytree of what they share."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree


class BatchArguments(NamedTuple):
    """The arguments of all fits: leaves with a leading batch axis, and shared ones."""

    each: PyTree  # (x0, data, bounds, weights), None where a leaf is shared
    shared: PyTree  # the same, None where a leaf is not
    idle: Any = None  # flags of those that fill up a batch, and are not fitted

    def one(self, each: PyTree) -> tuple:
        """The arguments of a single fit."""
        return eqx.combine(each, self.shared)

    @property
    def number(self) -> int:
        return len(jax.tree.leaves(self.each)[0])


def is_none(node: Any) -> bool:
    return node is None


def split(arguments: tuple, in_axes: Any, numpy: ModuleType) -> BatchArguments:
    """(x0, data, bounds, weights) with their batch axes first, of equal length.

    Args:
        in_axes: that of `solve_batch`.
        numpy: `jax.numpy`, or `numpy` for arrays that stay on the host.
    """
    if not isinstance(in_axes, (tuple, list)) or len(in_axes) not in (2, 3):
        raise ValueError(
            f"in_axes is {in_axes!r}; expected a pair for (x0, data), or three entries "
            "for (x0, data, bounds)."
        )
    names = "x0", "data", "bounds", "weights"
    x0_axes, data_axes, *rest = in_axes
    bounds_axes = rest[0] if rest else None
    weight_axes = data_axes if data_axes is None or isinstance(data_axes, int) else 0
    axes = x0_axes, data_axes, bounds_axes, weight_axes
    each = tuple(
        _batch_first(*one, numpy) for one in zip(names, axes, arguments, strict=True)
    )
    sizes = {
        name + jax.tree_util.keystr(path): len(leaf)
        for name, tree in zip(names, each, strict=True)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    if not sizes:
        raise ValueError("in_axes marks no batch axis; use solve for a single fit.")
    if len(set(sizes.values())) > 1:
        lengths = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"The batch axes differ in length: {lengths}.")
    shared = jax.tree.map(
        lambda batched, leaf: leaf if batched is None else None,
        each,
        arguments,
        is_leaf=is_none,
    )
    return BatchArguments(each, shared)


def _batch_first(name: str, axes: PyTree, tree: PyTree, numpy: ModuleType) -> PyTree:
    """A tree with its batch axes first, and None in place of leaves without one."""

    def part(axis: Any, subtree: PyTree) -> PyTree:
        return jax.tree.map(functools.partial(leaf, axis), subtree)

    def leaf(axis: Any, value: Any) -> Any:
        if axis is None:
            return None
        value = numpy.asarray(value)
        if not isinstance(axis, int) or not -value.ndim <= axis < value.ndim:
            raise ValueError(
                f"in_axes names axis {axis!r} of an array of {name} that has the shape "
                f"{value.shape}."
            )
        return numpy.moveaxis(value, axis, 0)

    try:
        return jax.tree.map(part, axes, tree, is_leaf=is_none)
    except ValueError as error:
        if "in_axes" in str(error):
            raise
        raise ValueError(
            f"in_axes has {axes!r} for {name}, which is no prefix of its structure, "
            f"{jax.tree.structure(tree)}."
        ) from error
