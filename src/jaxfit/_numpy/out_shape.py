"""The shape of a function's values for arguments of other lengths."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class _Axes(NamedTuple):
    """Some of an argument's axes, as an output may have them."""

    start: int
    stop: int | None
    is_flat: bool  # they are one axis of the output

    @classmethod
    def possible(cls, ndim: int) -> Iterator[tuple["_Axes", ...]]:
        """What is likely first: all axes, the last, the first; then these as one."""
        for is_flat in (False, True):
            yield (cls(0, None, is_flat),)
            yield tuple(cls(k, None, is_flat) for k in range(1 - ndim, 0))
            yield tuple(cls(0, k, is_flat) for k in range(ndim - 1, 0, -1))

    def of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Those of a shape."""
        part = shape[self.start : self.stop]
        return (math.prod(part),) if self.is_flat else part


class OutShape(NamedTuple):
    """What shape a model's values have, seen from those of its arguments."""

    like: int | None  # the argument whose axes it ends in; None: none
    axes: _Axes
    rest: tuple[int, ...]  # the axes before
    dtype: str

    @classmethod
    def of(cls, values: np.ndarray, leaves: Sequence[Any]) -> "OutShape":
        """As it was once."""
        own, dtype = values.shape, values.dtype.str
        shapes = [(place, np.shape(leaf)) for place, leaf in enumerate(leaves)]
        for place, shape in shapes:
            lead = len(own) - len(shape)
            if shape and lead >= 0 and own[lead:] == shape:
                return cls(place, _ALL, own[:lead], dtype)
        of_each = [_Axes.possible(len(shape)) for _, shape in shapes]
        for likely in zip(*of_each, strict=True):
            for (place, shape), choices in zip(shapes, likely, strict=True):
                for axes in choices:
                    if shape and axes.of(shape) == own:
                        return cls(place, axes, (), dtype)
        return cls(None, _ALL, own, dtype)

    def for_leaves(self, leaves: Sequence[Any]) -> jax.ShapeDtypeStruct:
        """As it is for other arguments."""
        own = () if self.like is None else self.axes.of(np.shape(leaves[self.like]))
        return jax.ShapeDtypeStruct((*self.rest, *own), np.dtype(self.dtype))


_ALL = _Axes(0, None, is_flat=False)
