"""Branches and lanes: what one fit and many do at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import PyTree

from jaxfit._linalg.kernels import Flag


def choose(flag: Flag, then: PyTree, otherwise: PyTree) -> PyTree:
    """One of two pytrees, for each fit."""
    return jax.tree.map(functools.partial(jnp.where, flag), then, otherwise)


def branch(
    needed: Flag, then: Callable, otherwise: Callable, *operands: PyTree
) -> PyTree:
    """`then(*operands)` where it is needed, `otherwise(*operands)` elsewhere.

    For one fit a real branch: what is decided before is computed once, and no compiler
    draws it into all that depends on it. In lanes `then` is computed only if some fit
    needs it, and then for all.
    """
    if needed.ndim == 0:
        return lax.cond(needed, _varying(then), _varying(otherwise), *operands)
    usual = otherwise(*operands)
    if needed.size == 0:
        return usual

    def corrected(usual: PyTree, *operands: PyTree) -> PyTree:
        return choose(needed, then(*operands), usual)

    return lax.cond(
        jnp.any(needed), corrected, lambda usual, *_: usual, usual, *operands
    )


def _varying(function: Callable) -> Callable:
    """Its results vary over the axes of a mesh that its arguments vary over."""
    return lambda *operands: varying_with(function(*operands), operands)


def for_each(kernel: Callable, is_lanes: bool) -> Callable:
    """A kernel that is written for one fit, for lanes too."""
    return jax.vmap(kernel, in_axes=-1, out_axes=-1) if is_lanes else kernel


def varying_with(tree: PyTree, others: PyTree) -> PyTree:
    """Under `shard_map`: let a tree vary over the mesh axes that others vary over.

    Loops and branches want the same axes on both sides, also of constants.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    for leaf in jax.tree.leaves(others):
        if jnp.size(leaf):
            first = jnp.ravel(jnp.asarray(leaf))[0]
            mark = first == first
            tree = jax.tree.map(functools.partial(_choose_either, mark), tree)
    return tree


def _choose_either(mark: Flag, value: Any) -> Any:
    return jnp.where(mark, value, value)


def lanes_last(tree: PyTree) -> PyTree:
    """Arrays whose first axis is the lanes, with it as the last."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), tree)


def lanes_first(tree: PyTree) -> PyTree:
    """Arrays whose last axis is the lanes, with it as the first."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), tree)


def batched_in_lanes(kernel: Callable) -> Callable:
    """Let `jax.vmap` run a kernel on lanes: the kernel is written for both."""
    batching = custom_vmap(kernel)

    @batching.def_vmap
    def rule(size: int, in_batched: PyTree, *args: PyTree) -> tuple[PyTree, PyTree]:
        def to_lanes(x: Any, is_batched: bool) -> Any:
            if is_batched:
                return jnp.moveaxis(x, 0, -1)
            return jnp.broadcast_to(x[..., None], (*x.shape, size))

        out = lanes_first(kernel(*jax.tree.map(to_lanes, args, tuple(in_batched))))
        return out, jax.tree.map(lambda _: True, out)

    return functools.wraps(kernel)(lambda *args: batching(*args))
