"""Many fits as one loop over the fit, on CPUs; elsewhere as lanes.

A CPU does one thing after the other: there a batch is a loop whose body is the program
of a single fit. No fit waits for another, what is rarely needed costs nothing where it
is not, and the answers are those of single fits. On an accelerator the batch is the
hardware's vector: see `_lanes.py`. Which of the two it is turns out when the program is
lowered for a platform.

`jax.vmap` of a fit comes here by a batching rule of the whole fit. A batch of batches
is one loop: what all share is never copied.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array, PyTree

from jaxfit._one_function import Closed, marked, on_platform

Inputs = list[Array]
Lanes = Callable[[PyTree, PyTree, int], PyTree]  # (each, shared, number) -> results


def alone_or_many(
    fit: Callable[[PyTree], PyTree],
    arrays: PyTree,
    in_one_function: bool,
    lanes: Lanes,
    is_lanes: bool,
) -> PyTree:
    """`fit(arrays)`, for one fit or, under `jax.vmap`, for many.

    Args:
        fit: from the arrays of one fit to what is reported of it.
        arrays: of one fit.
        in_one_function: whether it may be one function of the machine, on CPUs.
        lanes: many fits at once: of arrays with a leading axis (None in the place of
            the others), of those that all share (likewise), and of their number.
        is_lanes: whether many are fitted so on every platform.
    """
    closed = Closed.of(fit, arrays)
    one = marked(closed.of_inputs) if in_one_function else closed.of_inputs
    structure = jax.tree.structure(arrays)

    def in_turn(sizes, inputs):
        return _in_turn(one, sizes, inputs)

    def at_once(sizes, inputs):
        each, shared = _parted(sizes, inputs)
        number = math.prod(sizes)
        if closed.closes or structure.num_leaves != len(inputs):
            axes = [0 if leaf is not None else None for leaf in each]
            inputs = [s if e is None else e for e, s in zip(each, shared, strict=True)]
            out = jax.vmap(closed.of_inputs, in_axes=(axes,), axis_size=number)(inputs)
        else:
            each, shared = (jax.tree.unflatten(structure, x) for x in (each, shared))
            out = jax.tree.leaves(lanes(each, shared, number))
        return [leaf.reshape(*sizes, *leaf.shape[1:]) for leaf in out]

    def of(sizes: tuple[int, ...]) -> Callable[[Inputs], list]:
        @custom_vmap
        def fits(inputs):
            if not sizes:
                if not in_one_function:
                    return one(inputs)
                return on_platform(one, closed.of_inputs, inputs)
            if math.prod(sizes) == 0:
                return _none_of(closed.of_inputs, sizes, inputs)
            if is_lanes:
                return at_once(sizes, inputs)
            return on_platform(
                *_loop_or(
                    lambda inputs: in_turn(sizes, inputs),
                    lambda inputs: at_once(sizes, inputs),
                    inputs,
                ),
                inputs,
            )

        @fits.def_vmap
        def batched(size, in_batched, inputs):
            wide = [
                leaf if is_batched else jnp.asarray(leaf)[None]
                for leaf, is_batched in zip(inputs, in_batched[0], strict=True)
            ]
            out = of((size, *sizes))(wide)
            return out, [True] * len(out)

        return fits

    out = of(())(closed.inputs)
    return jax.tree.unflatten(closed.structure, out)


# One after the other


def _in_turn(one: Callable[[Inputs], list], sizes: tuple, inputs: Inputs) -> list:
    """The fits of arrays with these leading axes, or ones where fits share them."""
    depth, number = len(sizes), math.prod(sizes)

    def nth(k):
        places = _unraveled(k, sizes)

        def own(leaf):
            rest = leaf.shape[depth:]
            if leaf.size == math.prod(rest):
                return leaf.reshape(rest)
            pairs = zip(places, leaf.shape, strict=False)
            begin = [jnp.where(size > 1, place, 0) for place, size in pairs]
            begin += [jnp.zeros_like(k)] * len(rest)
            part = lax.dynamic_slice(leaf, begin, (*[1] * depth, *rest))
            return part.reshape(rest)

        return one([own(leaf) for leaf in inputs])

    index = np.int32 if number <= np.iinfo(np.int32).max else np.int64
    out = lax.map(nth, jnp.arange(number, dtype=index))
    return [leaf.reshape(*sizes, *leaf.shape[1:]) for leaf in out]


def _unraveled(k, sizes: tuple[int, ...]) -> list:
    """The index along each axis of the kth element."""
    places = []
    for size in reversed(sizes):
        places.append(k % size)
        k = k // size
    return places[::-1]


def _none_of(of_inputs: Callable, sizes: tuple, inputs: Inputs) -> list:
    """The results of no fit."""
    depth = len(sizes)
    one = [jnp.zeros(leaf.shape[depth:], leaf.dtype) for leaf in inputs]
    shapes = jax.eval_shape(of_inputs, one)
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
        leaf.reshape(leaf.shape[depth:]) if own is None else None
        for leaf, own in zip(inputs, each, strict=True)
    ]
    return each, shared


def _loop_or(loop: Callable, lanes: Callable, inputs: Inputs) -> tuple:
    """Both ways, of which the second is traced when it is lowered, if ever."""
    closed = jax.make_jaxpr(loop)(inputs)
    results = tuple(closed.out_avals)
    is_wide = jax.config.jax_enable_x64

    def traced(*inputs):
        with jax.enable_x64(is_wide):
            return lanes(list(inputs))

    def now(inputs):
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *inputs)

    def later(inputs):
        return _later_p.bind(*inputs, function=traced, results=results)

    return now, later


_later_p = Primitive("traced_when_lowered")
_later_p.multiple_results = True


@_later_p.def_impl
def _evaluated(*inputs, function, results):
    return function(*inputs)


@_later_p.def_abstract_eval
def _typed(*inputs, function, results):
    return list(results)


def _lowered(context: Any, *inputs: Any, function: Callable, results: Sequence) -> Any:
    return mlir.lower_fun(function, multiple_results=True)(context, *inputs)


mlir.register_lowering(_later_p, _lowered)
