"""Batches that do not fit on the device: block after block, from the host."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxfit._arrays import native, refuse_masks
from jaxfit._batch import Placement, checked_setting, run_batch
from jaxfit._fits import Fits, split
from jaxfit._observed import lengthened, unwrap_shared
from jaxfit._options import Options
from jaxfit._solution import Solution
from jaxfit.losses import Loss

IN_FLIGHT = 2  # one block computes while the next is sent


def solve_blocks(
    fn: Callable[[PyTree, PyTree], PyTree],
    x0: PyTree,
    data: PyTree,
    *,
    block: int = 65536,
    progress: bool = False,
    in_axes: tuple = (0, 0),
    bounds: tuple[PyTree, PyTree] | None = None,
    weights: PyTree | None = None,
    loss: Loss | None = None,
    options: Options | None = None,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
    keep: Callable[[Solution], Any] | None = None,
) -> Any:
    """`solve_batch` for more fits than the device holds.

    The arguments stay on the host, where they may be `numpy.memmap`s, and go to the
    device in blocks; one block is sent while another computes. One program serves all
    blocks, so that any number of fits compiles once. Every fit has the answer that
    `solve_batch` gives it, bit for bit.

    Args:
        fn, x0, data: those of `solve_batch`, as NumPy arrays.
        block: fits on the device at a time.
        progress: show a bar, by tqdm if that is installed and else as a line of text.
        in_axes, bounds, weights, loss, options, lanes, mesh, axis, keep: see
            `solve_batch`.

    Returns:
        What `solve_batch` returns, in NumPy arrays.

    Raises:
        ValueError, TypeError: for arguments of the wrong kind or shape.
    """
    if not (isinstance(block, int) and block >= 1):
        raise ValueError(f"block is {block!r}; give a whole number of at least 1.")
    callables, options = checked_setting(fn, keep, loss, options, lanes)
    arguments = x0, unwrap_shared(data), bounds, weights
    refuse_masks(arguments)
    fits = split(arguments, in_axes, np)
    shared = jax.tree.map(native, fits.shared)
    number = fits.number
    block = max(1, min(block, number))
    placement = Placement(lanes, mesh, axis)
    waiting: deque = deque()
    results = None

    def collect():
        nonlocal results
        start, found = waiting.popleft()
        found = jax.tree.map(np.asarray, found)
        if results is None:
            results = jax.tree.map(
                lambda leaf: np.empty((number, *leaf.shape[1:]), leaf.dtype), found
            )

        def store(whole, part):
            whole[start : start + block] = part[: number - start]

        jax.tree.map(store, results, found)

    for start in shown(range(0, max(number, 1), block), block, number, progress):
        part = Fits(_cut(fits.each, start, block), shared)
        waiting.append((start, run_batch(callables, part, loss, options, placement)))
        if len(waiting) == IN_FLIGHT:
            collect()
    while waiting:
        collect()
    return results


def _cut(each: PyTree, start: int, block: int) -> PyTree:
    """One block of fits; the last is filled up with copies of its last fit."""

    def cut(leaf):
        part = native(leaf[start : start + block])
        return lengthened(part, block - len(part)) if len(part) else part

    return jax.tree.map(cut, each)


def shown(starts: range, block: int, number: int, progress: bool) -> Iterator[int]:
    """The starts of the blocks, with a bar."""
    if not progress:
        yield from starts
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _told(starts, block, number)
        return
    with tqdm(total=number, unit=" fits", unit_scale=True) as bar:
        for start in starts:
            yield start
            bar.update(min(block, number - start))


def _told(starts: range, block: int, number: int) -> Iterator[int]:
    begin = time.perf_counter()
    for start in starts:
        yield start
        done = min(start + block, number)
        rate = done / (time.perf_counter() - begin)
        print(f"\r{done} of {number} fits, {rate:.0f}/s", end="", file=sys.stderr)
    print(file=sys.stderr)
