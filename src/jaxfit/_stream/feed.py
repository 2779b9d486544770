"""Blocks of rows from a disk or a generator of the user's, ready on the device.

A thread reads, checks and transfers the next block while this one is computed with. All
blocks are filled up to the length of the longest so far, so that one program serves
them, and how many of their rows count goes with them.
"""

import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._programs.arrays import ordinary
from jaxfit._rows.table import RowTable, map_rows, split_rows

AHEAD = 1  # blocks that are ready while another is computed with


class Nouns(NamedTuple):
    """What a fit calls that of which it reads one after the other, and its rows."""

    block: str = "Block"
    blocks: str = "blocks"
    row: str = "row"
    rows: str = "rows"
    can_omit: bool = True  # rows with NaN


ROWS = Nouns()


class Weighted(NamedTuple):
    """A block of data with the weights of its residuals."""

    data: PyTree
    weights: PyTree


# Sources


class npy_blocks:
    """Rows of `.npy` files, block after block, for `solve_stream`.

    Args:
        files: what a block is, with a file in the place of each array: paths of `.npy`
            files, or arrays such as `numpy.memmap`s, all with the same number of rows
            along their first axis. `Shared(...)` stays as it is; `Weighted(data,
            weights)` may hold them.
        block: rows of a block.

    Attributes:
        rows: of all blocks.
        block: rows of a block.

    Raises:
        ValueError: for files with different numbers of rows, or without any.
        OSError: for a file that cannot be read.
    """

    def __init__(self, files: PyTree, block: int = 2**20):
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            raise ValueError(f"block is {block!r}; give a whole number of at least 1.")
        self.files, self.block = files, block
        self.rows = split_rows(*_unweighted(self._opened())).number

    def __len__(self) -> int:
        return -(-self.rows // self.block)

    def __iter__(self) -> Iterator[PyTree]:
        return self.iter_from(0)

    def iter_from(self, index: int) -> Iterator[PyTree]:
        """The blocks from one on, without reading those before it."""
        for number in range(index, len(self)):
            start = number * self.block
            # opened anew, so that what was read does not stay mapped
            block = _unweighted(self._opened())
            table = split_rows(*block)
            rows = [leaf[start : start + self.block] for leaf in table.rows]
            yield Weighted(*table.marked(rows, table.shared))

    def _opened(self) -> PyTree:
        def opened(leaf: Any) -> Any:
            if isinstance(leaf, (str, os.PathLike)):
                return np.load(leaf, mmap_mode="r", allow_pickle=False)
            return leaf

        return map_rows(opened, self.files)


def check_source(blocks: Any) -> None:
    """Refuse what cannot be read again and again."""
    if not isinstance(blocks, Iterable) or isinstance(blocks, (str, bytes, dict)):
        raise TypeError(
            f"blocks is {type(blocks).__name__}; expected something to iterate over, "
            "such as a list of blocks of data, npy_blocks(...), or an object with "
            "__iter__."
        )
    if isinstance(blocks, Iterator):
        raise TypeError(
            f"blocks is a {type(blocks).__name__}, which can be read only once, and a "
            "fit makes several passes. Give a list, npy_blocks(...), or an object "
            "whose __iter__ starts a new pass."
        )


def known_size(blocks: Any, nouns: Nouns = ROWS) -> dict[str, int | None]:
    """The numbers of blocks and rows, as far as they are known without reading."""
    number = len(blocks) if hasattr(blocks, "__len__") else None
    rows = getattr(blocks, "rows", None)
    if isinstance(blocks, (list, tuple)):
        rows = sum(
            _observed(f"{nouns.block} {index}", block).number
            for index, block in enumerate(blocks)
        )
    return {"blocks": number, "rows": None if rows is None else int(rows)}


def _unweighted(block: PyTree) -> tuple[PyTree, PyTree | None]:
    """Data and weights of a block."""
    return block if isinstance(block, Weighted) else (block, None)


def _observed(name: str, block: PyTree) -> RowTable:
    """A block of the user's, with its name in what is wrong with it."""
    try:
        block = map_rows(_as_array, _unweighted(block))
        return split_rows(*ordinary(block, ("data", "weights")))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, (jax.Array, np.ndarray)) else np.asarray(leaf)


# The thread that reads


class Block(NamedTuple):
    """A block on the device."""

    position: int  # in a pass
    data: PyTree
    weights: PyTree | None
    rows: int  # that count
    capacity: int  # rows with those that fill it up


class Layout(NamedTuple):
    """What all blocks have in common."""

    structure: Any  # of (data, weights)
    arrays: tuple  # of each array of rows: its shape without the rows, its dtype

    @classmethod
    def of(cls, table: RowTable) -> "Layout":
        arrays = tuple((leaf.shape[1:], str(leaf.dtype)) for leaf in table.rows)
        return cls(table.structure, arrays)

    def __str__(self) -> str:
        arrays = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in self.arrays)
        return f"{arrays} in {self.structure}"


class Feed:
    """The blocks of one pass after another.

    Args:
        blocks: the user's.
        check_numbers: refuse NaN and infinity.
        nouns: what blocks and rows are called.

    Attributes:
        capacity: rows of the longest block so far.
    """

    def __init__(self, blocks: Any, check_numbers: bool, nouns: Nouns = ROWS):
        self.blocks, self.check_numbers, self.nouns = blocks, check_numbers, nouns
        self.capacity = 0
        self.layout: Layout | None = None

    def first(self) -> Block:
        """The first block with rows."""
        for block in self.read(0):
            return block
        raise ValueError(
            f"blocks has no {self.nouns.rows}; a fit needs at least one residual."
        )

    def read(self, first: int) -> Iterator[Block]:
        """The blocks from one on, each read while the one before is computed with."""
        ready: queue.Queue = queue.Queue(maxsize=AHEAD)
        stop = threading.Event()
        config: Any = jax.config
        x64, device = config.jax_enable_x64, config.jax_default_device

        def put(item: Any) -> bool:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return True
            return False

        def work() -> None:
            try:
                with jax.enable_x64(x64), jax.default_device(device):
                    for block in self._prepared(first):
                        if not put(block):
                            return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="jaxfit reader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _prepared(self, first: int) -> Iterator[Block]:
        source = _from(self.blocks, first)
        for index in itertools.count(first):
            try:
                block = next(source, _END)
            except Exception as error:
                raise RuntimeError(
                    f"{self.nouns.block} {index} could not be read: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if block is _END:
                return
            prepared = self._on_device(index, block)
            if prepared is not None:
                yield prepared

    def _on_device(self, index: int, block: PyTree) -> Block | None:
        name = f"{self.nouns.block} {index}"
        table = _observed(name, block)
        layout = Layout.of(table)
        if self.layout is None:
            self.layout = layout
        if layout != self.layout:
            raise ValueError(
                f"{name} has other arrays than those before it: {layout}; "
                f"expected {self.layout}."
            )
        rows = table.number
        if rows == 0:
            return None
        if self.check_numbers:
            _check_numbers(name, table, self.nouns)
        self.capacity = max(self.capacity, rows)
        arrays = [filled_up(np.asarray(leaf), self.capacity) for leaf in table.rows]
        arrays = jax.device_put(arrays)
        data, weights = table.marked(arrays, table.shared)
        return Block(index, data, weights, rows, self.capacity)


_END = object()


def _from(blocks: Any, first: int) -> Iterator:
    if first == 0:
        return iter(blocks)
    if hasattr(blocks, "iter_from"):
        return iter(blocks.iter_from(first))
    return itertools.islice(iter(blocks), first, None)


def filled_up(leaf: np.ndarray, rows: int) -> np.ndarray:
    """A copy, since the user may read the next block into the same memory."""
    filled = np.empty((rows, *leaf.shape[1:]), leaf.dtype)
    filled[: len(leaf)] = leaf
    filled[len(leaf) :] = leaf[-1:]
    return filled


def _check_numbers(name: str, table: RowTable, nouns: Nouns) -> None:
    """Refuse NaN and infinity, but where weights are zero."""
    for leaf in table.rows:
        if not np.issubdtype(leaf.dtype, np.inexact) or np.all(np.isfinite(leaf)):
            continue
        _, weights = table.with_rows(table.rows)
        bad = ~np.isfinite(leaf)
        for weight in map(np.asarray, jax.tree.leaves(weights)):
            counts = weight != 0
            if counts.shape != bad.shape:  # of one row, or of other residuals
                counts = _by_row(np.any, counts)
                counts = counts.reshape(-1, *[1] * (bad.ndim - 1))
            bad = bad & counts
        bad = _by_row(np.any, bad)
        if np.any(bad):
            other = ", or leave them out by nan_policy='omit'" * nouns.can_omit
            raise ValueError(
                f"{name} has NaN or infinity in {np.sum(bad)} of its {table.number} "
                f"{nouns.rows}, first in {nouns.row} {np.argmax(bad)}. Clean the "
                f"data, or give what is bad weight zero by Weighted(data, weights)"
                f"{other}."
            )


def _by_row(reduction: Callable, flags: np.ndarray) -> np.ndarray:
    return reduction(flags, axis=tuple(range(1, flags.ndim)))
