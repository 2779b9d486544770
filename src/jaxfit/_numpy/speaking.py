"""A function written in NumPy as a function of JAX, of which a program may hold it.

What traces it is imported when it is called: a fit of functions in JAX needs none.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._numpy.either import is_numpy
from jaxfit._programs.splits import Child, Split, Wrapper


class SpeakingNumPy(Wrapper):
    """A function written in NumPy, as one of JAX."""

    def __init__(self, function: Callable) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function

    def __reduce__(self) -> tuple:
        return SpeakingNumPy, (self.function,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpeakingNumPy) and self.function == other.function

    def __hash__(self) -> int:
        return hash((SpeakingNumPy, self.function))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_numpy(*jax.tree.leaves((args, kwargs))):
            return self.function(*args, **kwargs)
        return self.traced()(*args, **kwargs)

    def traced(self, on_jax: Callable[[], None] | None = None) -> Callable:
        """The function of JAX; see `speaking_numpy`."""
        from jaxfit._numpy.compile import speaking_numpy  # seldom needed

        return speaking_numpy(self.function, on_jax)

    def split(self) -> Split:
        """Of what the function holds, what is traced speaks NumPy too."""
        child = Child(self.function)
        return _WrappedSplit(
            "speaking NumPy", [child], lambda parts: SpeakingNumPy(parts[0])
        )


class _WrappedSplit(Split):
    def remade(self, thing: Any, puts: dict, values: Sequence, made: dict) -> Any:
        """A function that is made anew in each call, which its arrays belong to."""
        (put,) = puts.values()
        put(values, {})  # for whoever notes which of them it takes

        from jaxfit._numpy.copies import Remade  # seldom needed

        function = Remade(lambda: put(_Wrapped(values), {}))
        return SpeakingNumPy(functools.update_wrapper(function, thing.function))


class _Wrapped(Sequence):
    """Values, as arrays that speak NumPy; those that stay numbers are known to it."""

    def __init__(self, values: Sequence) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, place: Any) -> Any:
        from jaxfit._numpy.traced import wrapped

        value = self._values[place]
        return wrapped(value) if isinstance(value, (jax.Array, np.ndarray)) else value


def spoken(tree: PyTree) -> PyTree:
    """Arrays that speak NumPy, and know their numbers where NumPy does."""
    from jaxfit._numpy.traced import wrapped

    return jax.tree.map(wrapped, tree)
