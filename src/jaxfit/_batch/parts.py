"""A long leading axis, part by part: on all cores of a CPU, in flat memory.

One program of a fixed size serves all parts, and any number of what they hold: the last
of a part are marked as idle where it is not full. On a CPU every core works through
parts of its own; elsewhere one part computes while the next is sent.
"""

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._programs.arrays import is_extended, native
from jaxfit._programs.compiled import prepared, specialised
from jaxfit._programs.progress import shown
from jaxfit._rows.table import lengthened

MOST = 4096  # of one part, on a CPU
NUMBERS = 2**18  # of the data of one part, on a CPU: 2 MB, to stay in cache
IN_FLIGHT = 2  # elsewhere


class NotNumbers(TypeError):
    """Results that NumPy cannot hold."""

    def __init__(self):
        super().__init__(
            "What is kept of a fit holds keys of random numbers, which NumPy does not "
            "have; return jax.random.key_data(key)."
        )


def size_on_cpu(numbers: int) -> int:
    """The size of a part whose elements are so many numbers each: a power of two."""
    most = max(1, min(MOST, NUMBERS // max(numbers, 1)))
    return 1 << most.bit_length() - 1


def numbers_of_one(each: PyTree) -> int:
    """How many numbers belong to one element of a leading axis."""
    return sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(each))


def in_parts(
    function: Callable,
    arguments: Callable[[PyTree, np.ndarray], tuple],
    each: PyTree,
    size: int,
    *,
    is_on_cpu: bool,
    is_hasty: bool = False,
    progress: bool = False,
) -> PyTree:
    """`compiled(function, *arguments)` of all parts, as NumPy arrays.

    Args:
        function: that of `compiled`.
        arguments: (part, idle) -> its arguments; `idle` flags what fills the part up.
        each: arrays on the host with a leading axis.
        size: of a part.
        is_on_cpu: whether it is computed there, on one device.
        is_hasty: compile in half the time what then takes twice as long.
        progress: show a bar.
    """
    number = len(jax.tree.leaves(each)[0])
    is_small = is_hasty and number <= size  # threads cost more than they save
    workers = 1 if is_small or not is_on_cpu else cores()
    parts = list(_parts(number, size, workers))

    def of_part(begin: int, count: int) -> tuple:
        def cut(leaf: np.ndarray) -> np.ndarray:
            part = native(leaf[begin : begin + count])
            return lengthened(part, size - count)

        return arguments(jax.tree.map(cut, each), np.arange(size) >= count)

    call = prepared(function, *of_part(*parts[0]), is_hasty=is_hasty)
    results = _results_like(call.results, number)

    def store(begin: int, count: int, part_results: PyTree) -> int:
        def stored(whole: np.ndarray, part: Any) -> None:
            whole[begin : begin + count] = np.asarray(part)[:count]

        jax.tree.map(stored, results, part_results)
        return count

    def work(part: tuple[int, int]) -> int:
        begin, count = part
        return store(begin, count, call(*of_part(begin, count)))

    if workers == 1 or len(parts) == 1:
        done = _one_ahead(lambda part: call(*of_part(*part)), store, parts)
    else:
        done = _in_threads(work, parts)
    for _ in shown(done, number, progress):
        pass
    return results


def lean_first_in_parts(
    function: Callable,
    arguments: Callable[[PyTree, np.ndarray], tuple],
    each: PyTree,
    size: int,
    progress: bool = False,
    **options: Any,
) -> PyTree:
    """`in_parts` on a CPU, of a function that can leave out what is seldom needed.

    Args:
        function: (is_lean, *arguments) -> results; if it is lean, with flags of which
            are incomplete. These are done anew by the whole.
        **options: of `in_parts`.
    """

    def done(is_lean: bool, each: PyTree) -> Any:
        program = specialised(function, is_lean)
        return in_parts(
            program,
            arguments,
            each,
            size,
            is_on_cpu=True,
            progress=progress and is_lean,
            **options,
        )

    results, incomplete = done(True, each)
    if incomplete.any():
        again = done(False, jax.tree.map(lambda leaf: leaf[incomplete], each))

        def put(whole: np.ndarray, part: np.ndarray) -> None:
            whole[incomplete] = part

        jax.tree.map(put, results, again)
    return results


def _results_like(shapes: PyTree, number: int) -> PyTree:
    """Empty arrays for the results of all parts."""
    if any(map(is_extended, jax.tree.leaves(shapes))):
        raise NotNumbers()
    return jax.tree.map(
        lambda leaf: _empty((number, *leaf.shape[1:]), leaf.dtype), shapes
    )


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _parts(number: int, size: int, workers: int) -> Iterator[tuple[int, int]]:
    """The beginning of each part and how many it holds: almost equally many."""
    parts = max(1, -(-number // size))
    if number > 1:
        parts = min(-(-parts // workers) * workers, number)
    ends = [number * k // parts for k in range(parts + 1)]
    for begin, end in itertools.pairwise(ends):
        yield begin, end - begin


def _one_ahead(call: Callable, store: Callable, parts: list) -> Iterator[int]:
    """One part after the other: while one computes, the data of the next are sent."""
    waiting: deque = deque()
    for part in parts:
        waiting.append((*part, call(part)))
        if len(waiting) == IN_FLIGHT:
            yield store(*waiting.popleft())
    while waiting:
        yield store(*waiting.popleft())


def _in_threads(work: Callable, parts: list) -> Iterator[int]:
    """Each core has parts of its own."""
    is_wide = jax.config.jax_enable_x64

    def in_scope(part: tuple[int, int]) -> int:
        with jax.enable_x64(is_wide):
            return work(part)

    with ThreadPoolExecutor(cores(), "jaxfit") as pool:
        try:
            for future in as_completed([pool.submit(in_scope, part) for part in parts]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


ALIGNED = 64  # bytes, as JAX wants memory that it takes over on a CPU


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that JAX can take over."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNED, np.uint8)
    begin = -memory.ctypes.data % ALIGNED
    return memory[begin : begin + size].view(dtype).reshape(shape)


def to_device(results: PyTree) -> PyTree:
    """Arrays of `in_parts` as arrays of JAX, without a copy."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=True), results)
