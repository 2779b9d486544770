"""Local parameters of all blocks, in arrays of the host."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._core.parameters import Parameters
from jaxfit._joint.fit import in_one_dtype
from jaxfit._rows.table import Shared, unwrap_shared
from jaxfit._stream.passes import Progress

Tables = Mapping[str, np.ndarray]


class HostStarts(NamedTuple):
    """The starts of local parameters, as the user has them."""

    x0: PyTree  # that of x, in the dtype of the fit
    leaves: list  # arrays with a leading axis of blocks, and what all `Shared`
    example: PyTree  # of one block, each leaf `Shared`, in the same dtype
    number: int | None  # of blocks; None: all is shared

    @classmethod
    def of(cls, x0: PyTree, u0: PyTree) -> "HostStarts":
        """The starts u0, beside those of x."""
        flat, structure = jax.tree_util.tree_flatten_with_path(u0, is_leaf=_is_shared)
        numbers = {
            f"u0{jax.tree_util.keystr(path)}": _number(path, leaf)
            for path, leaf in flat
            if not _is_shared(leaf)
        }
        if len(set(numbers.values())) > 1:
            words = ", ".join(f"{name} has {n}" for name, n in numbers.items())
            raise ValueError(
                f"The numbers of blocks differ: {words}. Wrap a start that is the same "
                "for all as jaxfit.Shared(...)."
            )
        leaves = [leaf for _, leaf in flat]
        first = [leaf.leaf if _is_shared(leaf) else leaf[0] for leaf in leaves]
        starts = in_one_dtype(x0, jax.tree.unflatten(structure, first))
        example = jax.tree.map(lambda leaf: Shared(np.asarray(leaf)), starts.u0)
        number = next(iter(numbers.values()), None)
        return cls(starts.x0, leaves, example, number)

    @property
    def parameters(self) -> Parameters:
        """Those of one block."""
        return Parameters(unwrap_shared(self.example))

    def of_blocks(self, first: int, number: int) -> np.ndarray:
        """The flat starts of blocks that follow each other, (number, l)."""

        def flat(leaf: Any) -> np.ndarray:
            if _is_shared(leaf):
                leaf = np.broadcast_to(leaf.leaf, (number, *np.shape(leaf.leaf)))
            else:
                leaf = np.asarray(leaf[first : first + number])
            return leaf.reshape(number, -1).astype(self.parameters.dtype)

        return np.concatenate([flat(leaf) for leaf in self.leaves], axis=1)


def _is_shared(node: Any) -> bool:
    return isinstance(node, Shared)


def _number(path: Any, leaf: Any) -> int:
    """The number of blocks of a start."""
    if not np.shape(leaf) or len(leaf) == 0:
        raise ValueError(
            f"u0{jax.tree_util.keystr(path)} has the shape {np.shape(leaf)}: give "
            "starts with the blocks as their leading axis, or Shared(start) for one "
            "that is the same for all."
        )
    return len(leaf)


def check_number(starts: HostStarts, number: int, at_end: bool) -> None:
    """Refuse items with other numbers of blocks than there are starts.

    Args:
        number: of blocks, so far or in the end.
    """
    expected = starts.number
    if expected is None or number == expected or (number < expected and not at_end):
        return
    so_far = "" if at_end else " or more"
    raise ValueError(
        f"u0 has starts for {expected} blocks, and the items have {number}{so_far}. "
        "Give u0 with a leading axis of all blocks, in the order of the items, or "
        "Shared(start) for one that is the same for all."
    )


def split_like(parameters: Parameters, rows: np.ndarray) -> PyTree:
    """Flat parameters of blocks, (B, l), in their structure, without a copy."""
    ends = np.cumsum([math.prod(shape) for shape in parameters.shapes])
    leaves = [
        part.reshape(len(rows), *shape)
        for part, shape in zip(
            np.split(rows, ends[:-1], axis=1), parameters.shapes, strict=True
        )
    ]
    return jax.tree.unflatten(parameters.structure, leaves)


# Tables: arrays by name, "kind.field", that are filled item after item


def with_item(
    progress: Progress, starts: HostStarts, kind: str, each: Any, number: int
) -> dict[str, np.ndarray]:
    """The tables with what was found of an item's blocks."""
    room = starts.number or int(progress.all_rows)
    return filled(progress.tables, kind, each, int(progress.rows), number, room)


def filled(
    tables: Tables, kind: str, rows: Any, first: int, number: int, room: int
) -> dict[str, np.ndarray]:
    """Tables with rows of one kind from a place on, in place where there is room.

    Args:
        rows: a NamedTuple of arrays, of which the first `number` rows are meant.
        room: rows to make room for, at least.
    """
    new = dict(tables)
    for field, leaf in rows._asdict().items():
        name, part = f"{kind}.{field}", np.asarray(leaf)[:number]
        table, end = new.get(name), first + number
        if table is None or len(table) < end:
            longer = max(room, end, 2 * first)
            grown = np.empty((longer, *part.shape[1:]), part.dtype)
            if table is not None:
                grown[:first] = table[:first]
            new[name] = table = grown
        table[first:end] = part
    return new


def of_kind(tables: Tables, kind: str, fields: Any, rows: Any = slice(None)) -> Any:
    """A NamedTuple of the tables of one kind, or of some of their rows."""
    return fields(*(tables[f"{kind}.{name}"][rows] for name in fields._fields))


def without(tables: Tables, kind: str) -> dict[str, np.ndarray]:
    """The tables of all other kinds."""
    return {k: v for k, v in tables.items() if not k.startswith(f"{kind}.")}


def exchanged(tables: Tables, kind: str, other: str) -> dict[str, np.ndarray]:
    """The tables of two kinds under each other's name."""
    names = {kind: other, other: kind}

    def renamed(name: str) -> str:
        begin, _, field = name.partition(".")
        return f"{names.get(begin, begin)}.{field}"

    return {renamed(name): table for name, table in tables.items()}


def cut(tables: Tables, number: int) -> dict[str, np.ndarray]:
    """The tables without room beyond so many rows."""
    return {name: table[:number] for name, table in tables.items()}
