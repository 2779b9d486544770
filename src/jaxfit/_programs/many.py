"""Many fits as one loop over the fit, on CPUs; elsewhere as lanes.

A CPU does one thing after the other: there a batch is a loop whose body is the program
of a single fit. No fit waits for another, what is rarely needed costs nothing where it
is not, and the answers are those of single fits. On an accelerator the batch is the
hardware's vector: see `_core/lanes.py`. Which of the two it is turns out when the
program is lowered for a platform.

`jax.vmap` of a fit comes here by a batching rule of the whole fit. A batch of batches
is one loop: what all share is never copied.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jaxtyping import Array, PyTree

from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import Flag
from jaxfit._programs.exportable import Dimension
from jaxfit._programs.one_function import Closed, marked, on_platform
from jaxfit._programs.spread import spread

Inputs = list  # of arrays, of JAX or NumPy


def alone_or_many(
    fit: Callable[[PyTree], PyTree],
    arrays: PyTree,
    idle: Flag | None,
    in_one_function: bool,
    in_parts: bool,
    lanes: Callable[[PyTree, PyTree, Flag | None, int], PyTree],
    is_lanes: bool,
) -> PyTree:
    """`fit(arrays)`, for one fit or, under `jax.vmap`, for many.

    Args:
        fit: from the arrays of one fit to what is reported of it.
        arrays: of one fit.
        idle: marks what fills up the end of a batch and is not fitted; None: nothing.
        in_one_function: whether it may be one function of the machine, on CPUs.
        in_parts: whether of many each may be, where they are parts of one device.
        lanes: many fits at once: of arrays with a leading axis (None in the place of
            the others), of those that all share (likewise), of flags, and of their
            number.
        is_lanes: whether many are fitted so on every platform.
    """
    one = _Fit(
        closed=Closed.of(fit, arrays),
        structure=jax.tree.structure(arrays),
        in_one_function=in_one_function,
        in_parts=in_parts,
        lanes=lanes,
        is_lanes=is_lanes,
    )
    out = one.over(())(one.closed.inputs, idle)
    return jax.tree.unflatten(one.closed.structure, out)


class _Fit(NamedTuple):
    """A fit that closes over nothing, and the ways to do many of it."""

    closed: Closed
    structure: Any  # of its arrays
    in_one_function: bool
    in_parts: bool
    lanes: Callable
    is_lanes: bool

    def over(
        self, sizes: tuple[Dimension, ...]
    ) -> Callable[[Inputs, Flag | None], list]:
        """The fits of inputs with such leading axes, or 1 where all share.

        `jax.vmap` of it is the same over one axis more.
        """

        @custom_vmap
        def fits(inputs: Inputs, idle: Flag | None) -> list:
            if not sizes:
                return self.alone(inputs)
            if math.prod(sizes) == 0:
                return _zeros(sizes, self.closed.results)

            def many(length: Dimension, operands: PyTree, is_for_one: bool) -> list:
                is_marked = self.in_parts if is_for_one else self.in_one_function
                return self.many((length, *sizes[1:]), is_marked, *operands)

            return spread(many, sizes[0], (inputs, idle))

        @fits.def_vmap
        def batched(
            size: Dimension, in_batched: PyTree, inputs: Inputs, idle: Flag | None
        ) -> tuple:
            def wide(leaf: Any, is_batched: bool) -> Any:
                return leaf if is_batched else jnp.asarray(leaf)[None]

            operands = jax.tree.map(wide, (inputs, idle), tuple(in_batched))
            out = self.over((size, *sizes))(*operands)
            return out, [True] * len(out)

        return fits

    def alone(self, inputs: Inputs) -> list:
        """One fit."""
        plain = self.closed.of_inputs
        if not self.in_one_function:
            return plain(inputs)
        return on_platform(marked(plain), plain, inputs)

    def many(
        self, sizes: tuple, is_marked: bool, inputs: Inputs, idle: Flag | None
    ) -> list:
        """A loop over fits, on CPUs, or lanes."""
        if self.is_lanes:
            return self.at_once(sizes, inputs, idle)
        plain = self.closed.of_inputs
        loop, lanes = _first_or(
            functools.partial(
                self.in_turn, sizes, marked(plain) if is_marked else plain
            ),
            functools.partial(self.at_once, sizes),
            inputs,
            idle,
        )
        return on_platform(loop, lanes, inputs, idle)

    def in_turn(
        self, sizes: tuple, one: Callable, inputs: Inputs, idle: Flag | None
    ) -> list:
        """A loop over fits."""
        results = _zeros((math.prod(sizes),), self.closed.results)
        return _in_turn(one, sizes, inputs, idle, results)

    def at_once(self, sizes: tuple, inputs: Inputs, idle: Flag | None) -> list:
        """Lanes; or, of a fit that has closed over something, a batch as JAX makes it,
        where each waits for the slowest."""
        number = math.prod(sizes)
        each, shared = _parted(sizes, inputs)
        if self.closed.closes or self.structure.num_leaves != len(inputs):
            axes = [None if leaf is None else 0 for leaf in each]
            inputs = [s if e is None else e for e, s in zip(each, shared, strict=True)]
            batch = jax.vmap(self.closed.of_inputs, (axes,), axis_size=number)
            out = batch(inputs)
        else:
            idle = None if idle is None else jnp.broadcast_to(idle, sizes).ravel()
            trees = (jax.tree.unflatten(self.structure, x) for x in (each, shared))
            out = jax.tree.leaves(self.lanes(*trees, idle, number))
        return [leaf.reshape(*sizes, *leaf.shape[1:]) for leaf in out]


# One after the other


def _in_turn(
    one: Callable[[Inputs], list],
    sizes: tuple,
    inputs: Inputs,
    idle: Flag | None,
    results: list,
) -> list:
    """The fits of arrays with these leading axes, or ones where fits share them.

    Args:
        results: arrays that they are written to.
    """
    depth, number = len(sizes), math.prod(sizes)
    index = _index(number)

    def of_nth(leaf: Array, k: Array) -> Array:
        """What the kth fit has of an array."""
        rest = leaf.shape[depth:]
        if leaf.size == math.prod(rest):
            return leaf.reshape(rest)
        pairs = zip(_unraveled(k, sizes), leaf.shape, strict=False)
        begin = [place if size > 1 else jnp.zeros_like(k) for place, size in pairs]
        begin += [jnp.zeros_like(k)] * len(rest)
        return lax.dynamic_slice(leaf, begin, (*[1] * depth, *rest)).reshape(rest)

    def goes_on(carry: tuple) -> Any:
        k, _ = carry
        return (k < number) & (True if idle is None else ~of_nth(idle, k))

    def step(carry: tuple) -> tuple:
        k, results = carry
        result = one([of_nth(leaf, k) for leaf in inputs])
        pairs = zip(results, result, strict=True)
        return k + 1, [lax.dynamic_update_index_in_dim(*pair, k, 0) for pair in pairs]

    carry = varying_with((index(0), results), (inputs, idle))
    _, results = lax.while_loop(goes_on, step, carry)
    return [leaf.reshape(*sizes, *leaf.shape[1:]) for leaf in results]


def _index(number: Dimension) -> Callable:
    """Integers that count so many fits."""
    if number <= np.iinfo(np.int32).max:
        return jnp.int32
    if jax.config.jax_enable_x64:
        return jnp.int64
    raise ValueError(
        f"There are {number} fits, and JAX counts to 2^31 without x64. Turn it on, "
        "jax.config.update('jax_enable_x64', True), or use solve_blocks."
    )


def _unraveled(k: Array, sizes: tuple[Dimension, ...]) -> list:
    """The index along each axis of the kth element."""
    places = []
    for size in reversed(sizes):
        places.append(k % size)
        k = k // size
    return places[::-1]


def _zeros(sizes: tuple, shapes: Sequence) -> list:
    """Zeros for the results of fits, with these leading axes."""
    return [jnp.zeros((*sizes, *leaf.shape), leaf.dtype) for leaf in shapes]


# All at once


def _parted(sizes: tuple, inputs: Inputs) -> tuple[list, list]:
    """What differs among the fits, with one leading axis, and what they share."""
    depth = len(sizes)
    each: list = []
    for leaf in inputs:
        rest = leaf.shape[depth:]
        if all(size == 1 for size in leaf.shape[:depth]) and math.prod(sizes) > 1:
            each.append(None)
        else:
            wide = jnp.broadcast_to(leaf, (*sizes, *rest))
            each.append(wide.reshape(-1, *rest))
    shared = [
        leaf.reshape(leaf.shape[depth:]) if batched is None else None
        for leaf, batched in zip(inputs, each, strict=True)
    ]
    return each, shared


def _first_or(first: Callable, second: Callable, *operands: PyTree) -> tuple:
    """Two functions, of which the second is traced when it is lowered, if ever."""
    closed = jax.make_jaxpr(first)(*operands)
    results, structure = tuple(closed.out_avals), jax.tree.structure(operands)
    is_wide = jax.config.jax_enable_x64

    def traced(*leaves: Any) -> list:
        with jax.enable_x64(is_wide):
            return second(*jax.tree.unflatten(structure, leaves))

    def now(*operands: PyTree) -> list:
        return jaxpr_as_fun(closed)(*jax.tree.leaves(operands))

    def later(*operands: PyTree) -> list:
        leaves = jax.tree.leaves(operands)
        return _later_p.bind(*leaves, function=traced, results=results)

    return now, later


_later_p = Primitive("traced_when_lowered")
_later_p.multiple_results = True


@_later_p.def_impl
def _evaluated(*inputs: Any, function: Callable, results: Sequence) -> list:
    return function(*inputs)


@_later_p.def_abstract_eval
def _typed(*inputs: Any, function: Callable, results: Sequence) -> list:
    return list(results)


def _lowered(context: Any, *inputs: Any, function: Callable, results: Sequence) -> Any:
    return mlir.lower_fun(function, multiple_results=True)(context, *inputs)


mlir.register_lowering(_later_p, _lowered)
