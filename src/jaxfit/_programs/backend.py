"""Where a program runs, and whether it runs now."""

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state
from jaxtyping import PyTree

from jaxfit._programs.arrays import is_extended


def is_eager_on_cpu(tree: PyTree) -> bool:
    """Whether a program of these arrays runs now, and on the one CPU device that JAX
    chooses by itself."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, Tracer) for leaf in leaves) or jax.config.jax_disable_jit:
        return False
    if is_traced() or platform_of(leaves) != "cpu":
        return False
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    default = _devices_by_default(jax.config.jax_default_device) if arrays else None
    return all(x.sharding.device_set == default and not is_extended(x) for x in arrays)


@functools.lru_cache(maxsize=64)
def _devices_by_default(setting: Any) -> Any:
    """The devices of an array that is made under this setting of JAX."""
    return jnp.zeros(()).sharding.device_set


def is_on_one_device(tree: PyTree) -> bool:
    """Whether each of its arrays lies on one device."""
    arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    return all(len(x.sharding.device_set) == 1 for x in arrays)


def platform_of(tree: PyTree) -> str | None:
    """The platform that a program with these operands runs on, if all say the same."""
    default = jax.config.jax_default_device or jax.default_backend()
    arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    devices = {d.platform for x in arrays for d in x.sharding.device_set}
    platforms = devices | {getattr(default, "platform", default)}
    return platforms.pop() if len(platforms) == 1 else None


def is_traced() -> bool:
    """Whether a trace is going on."""
    return _trace_state() != _no_trace()


def _trace_state() -> Any:
    return get_opaque_trace_state(convention="flax")


@functools.cache
def _no_trace() -> Any:
    """The state in which nothing is traced, as a new thread has it."""
    states: list = []
    thread = threading.Thread(target=lambda: states.append(_trace_state()))
    thread.start()
    thread.join()
    return states[0]
