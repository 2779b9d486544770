"""From the user's parameters, bounds and scales to flat vectors, and their checks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxfit._core.bounds import Bounds


class Parameters:
    """The structure of `x0`: how it becomes one vector and how it comes back."""

    def __init__(self, x0: PyTree):
        leaves, self.structure = jax.tree.flatten(x0)
        paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(x0)]
        if not leaves or sum(np.size(leaf) for leaf in leaves) == 0:
            raise ValueError(f"x0 is {x0!r}; a fit needs at least one parameter.")
        dtypes = [jnp.result_type(leaf) for leaf in leaves]
        for path, dtype in zip(paths, dtypes, strict=True):
            if not jnp.issubdtype(dtype, jnp.floating):
                raise TypeError(
                    f"x0{path} has dtype {dtype}; parameters must be real floating-"
                    "point numbers. Write 1.0 instead of 1, and give the real and "
                    "imaginary part of a complex parameter as two parameters."
                )
            if jnp.finfo(dtype).bits < 32:
                raise TypeError(
                    f"x0{path} has dtype {dtype}, which has too few digits for a fit; "
                    "use float32 or float64."
                )
        self.dtype = jnp.dtype(max(dtypes, key=lambda d: jnp.finfo(d).bits))
        self.shapes = [np.shape(leaf) for leaf in leaves]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)

    def ravel(self, tree: PyTree, name: str) -> Float[Any, " n"]:
        """A pytree that matches or prefixes `x0`, broadcast and as one vector.

        Where `x0` is one array, a list of numbers will do for an array.
        """
        if jax.tree_util.treedef_is_leaf(self.structure) and isinstance(tree, list):
            tree = jnp.asarray(tree)
        try:
            placeholder = jax.tree.unflatten(self.structure, [0] * len(self.shapes))
            tree = jax.tree.broadcast(tree, placeholder)
        except ValueError as error:
            raise ValueError(
                f"{name} has structure {jax.tree.structure(tree)}; expected a number, "
                f"or the structure of x0, {self.structure}, or a prefix of it."
            ) from error
        parts = []
        for leaf, shape in zip(jax.tree.leaves(tree), self.shapes, strict=True):
            dtype = jnp.result_type(leaf)
            if not (
                jnp.issubdtype(dtype, jnp.floating)
                or jnp.issubdtype(dtype, jnp.integer)
            ):
                raise TypeError(f"{name} has dtype {dtype}; expected real numbers.")
            try:
                leaf = jnp.broadcast_to(jnp.asarray(leaf).astype(self.dtype), shape)
            except ValueError as error:
                raise ValueError(
                    f"{name} has an array of shape {np.shape(leaf)}; it does not "
                    f"broadcast to the shape {shape} in x0."
                ) from error
            parts.append(jnp.ravel(leaf))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def unravel(self, vector: Array) -> PyTree:
        """A flat vector in the structure of `x0`."""
        if len(self.sizes) == 1:
            return jax.tree.unflatten(
                self.structure, [jnp.reshape(vector, self.shapes[0])]
            )
        ends = np.cumsum(self.sizes)
        leaves = [
            jnp.reshape(vector[end - size : end], shape)
            for end, size, shape in zip(ends, self.sizes, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def bounds(self, bounds: Any) -> Bounds | None:
        """Flat bounds from `(lower, upper)`; None stays None."""
        if bounds is None:
            return None
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise ValueError(
                f"bounds is {bounds!r}; expected None or a pair (lower, upper), each a "
                "number or a pytree that matches or prefixes x0."
            )
        lower, upper = bounds
        return Bounds(
            self.ravel(lower, "the lower bound"), self.ravel(upper, "the upper bound")
        )
