"""Data and weights as rows: which of their leaves are cut, and which are shared."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


class Shared(eqx.Module):
    """Marks a leaf of `data` that is not rows; `fn` receives what it wraps."""

    leaf: Any


def _is_shared(node: Any) -> bool:
    return isinstance(node, Shared)


def unwrap_shared(data: PyTree) -> PyTree:
    """`data` as `fn` sees it."""
    return jax.tree.map(
        lambda node: node.leaf if _is_shared(node) else node, data, is_leaf=_is_shared
    )


def map_rows(fn: Callable, tree: PyTree) -> PyTree:
    """A function of the leaves that are not shared."""
    return jax.tree.map(
        lambda leaf: leaf if _is_shared(leaf) else fn(leaf), tree, is_leaf=_is_shared
    )


class RowTable(NamedTuple):
    """Data and weights, of which the leaves that are rows can be exchanged."""

    rows: list  # the leaves that are rows
    shared: list  # all leaves, None in the place of rows
    structure: Any  # of (data, weights)
    has_weights: bool

    @property
    def number(self) -> int:
        """The number of rows."""
        return self.rows[0].shape[0]

    def marked(self, rows: list, shared: list) -> tuple[PyTree, PyTree]:
        """Data and weights with other rows, and marks on what is shared."""
        remaining = iter(rows)
        leaves = [next(remaining) if leaf is None else leaf for leaf in shared]
        return jax.tree.unflatten(self.structure, leaves)

    def with_rows(self, rows: list) -> tuple[PyTree, PyTree]:
        """Data and weights as `fn` sees them, with other rows."""
        return unwrap_shared(self.marked(rows, self.shared))


def whole_rows(data: PyTree, weights: PyTree | None) -> RowTable:
    """All arrays as one piece, whatever their axes mean."""
    leaves, structure = jax.tree.flatten(unwrap_shared((data, weights)))
    rows, shared = eqx.partition(leaves, eqx.is_array)
    rows = [leaf for leaf in rows if leaf is not None]
    return RowTable(rows, shared, structure, weights is not None)


def split_rows(data: PyTree, weights: PyTree | None) -> RowTable:
    """Tell rows from what is shared, and check that all have the same number."""
    flat, structure = jax.tree_util.tree_flatten_with_path(
        (data, weights), is_leaf=_is_shared
    )
    rows = {
        ("data", "weights")[path[0].idx] + jax.tree_util.keystr(path[1:]): leaf
        for path, leaf in flat
        if not _is_shared(leaf)
    }
    for name, leaf in rows.items():
        if not hasattr(leaf, "shape") or not leaf.shape:
            raise ValueError(
                f"{name} is {leaf!r}, which has no rows. Where rows are visited in "
                "parts, every leaf of data and weights is an array with the rows as "
                "its leading axis; wrap what is not rows as jaxfit.Shared(...)."
            )
    if not rows:
        raise ValueError("data has no rows to be visited in parts; use Whole().")
    if len({leaf.shape[0] for leaf in rows.values()}) > 1:
        lengths = ", ".join(
            f"{name} has {leaf.shape[0]}" for name, leaf in rows.items()
        )
        raise ValueError(
            f"The numbers of rows differ: {lengths}. Wrap what is not rows as "
            "jaxfit.Shared(...)."
        )
    shared = [leaf if _is_shared(leaf) else None for _, leaf in flat]
    return RowTable(list(rows.values()), shared, structure, weights is not None)


def lengthened(leaf: Any, extra: int) -> Any:
    """Rows followed by so many that do not count: copies of the last, if there is one.

    In NumPy for an array of NumPy.
    """
    if extra == 0:
        return leaf
    numpy = np if isinstance(leaf, np.ndarray) else jnp
    last = leaf[-1:] if len(leaf) else numpy.zeros((1, *leaf.shape[1:]), leaf.dtype)
    return numpy.concatenate([leaf, numpy.repeat(last, extra, axis=0)])
