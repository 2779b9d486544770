"""From NumPy to a program in double precision, and back."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxfit._programs.compiled import compiled
from jaxfit._programs.errors import explained

Numbers = TypeVar("Numbers", bound=tuple)  # a NamedTuple


@contextlib.contextmanager
def double_precision(function: Any) -> Iterator[None]:
    """Trace and compute in float64; explain why a function could not be traced."""
    with explained(function), jax.enable_x64(True):
        yield


def computed(
    function: Callable, *arguments: Any, traced: Any = None, is_hasty: bool = True
) -> PyTree:
    """`compiled(function, *arguments)` in double precision, as NumPy arrays.

    Args:
        traced: the user's function, which an error about tracing should name.
        is_hasty: that of `compiled`, where it is False: what is asked on the host is
            mostly computed once.
    """
    with double_precision(traced):
        results = compiled(function, *arguments, is_hasty=is_hasty)
        return jax.tree.map(np.asarray, results)


def pack(tree: PyTree) -> Float[Array, " k"]:
    """Numbers of all shapes as one vector: every array out of a program costs time."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float64) for leaf in leaves])


def unpack(vector: Any, shapes: Numbers) -> Numbers:
    """The inverse of `pack`, as NumPy arrays of their own and Python numbers.

    Args:
        vector: from `pack`, with any leading axes, which all arrays then have.
        shapes: a NamedTuple with a shape in the place of each array, or None.
    """
    vector = np.asarray(vector)
    lead, parts, start = vector.shape[:-1], [], 0
    for shape in shapes:
        if shape is None:
            parts.append(None)
        elif shape or lead:
            end = start + math.prod(shape)
            parts.append(vector[..., start:end].reshape((*lead, *shape)).copy())
            start = end
        else:
            parts.append(float(vector[start]))
            start += 1
    return type(shapes)(*parts)
