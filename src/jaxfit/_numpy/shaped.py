"""The shape and dtype of an array, and the same numbers in others."""

from typing import Any

import numpy as np

from jaxfit._numpy import shapes
from jaxfit._numpy.memory import Cell, Owner
from jaxfit._numpy.values import cast


class Elements:
    """What an array does with each element, whatever its shape."""

    __slots__ = ()
    _cell: Cell

    def _with(self, cell: Cell) -> Any:
        """One of its kind with other memory."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype:
        """NumPy's dtype of the numbers."""
        return np.dtype(self._cell.read().dtype)

    @property
    def real(self) -> Any:
        """The real part, a view."""
        return self._with(shapes.real_part(self._cell))

    @real.setter
    def real(self, value: Any) -> None:
        part: Any = self.real
        part[...] = value

    @property
    def imag(self) -> Any:
        """The imaginary part, a view."""
        return self._with(shapes.imaginary_part(self._cell))

    @imag.setter
    def imag(self, value: Any) -> None:
        part: Any = self.imag
        part[...] = value

    def astype(self, dtype: Any, *_: Any, copy: bool = True, **__: Any) -> Any:
        """In another dtype."""
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        return self._with(Owner(cast(self._cell.read(), dtype)))

    def copy(self, order: str = "C") -> Any:
        """With memory of its own."""
        return self._with(Owner(self._cell.read()))

    def clip(self, *bounds: Any, **named: Any) -> Any:
        """Within bounds, either of which may be left out."""
        named = dict(zip(("min", "max"), bounds, strict=False)) | named
        array: Any = self
        return np.clip(array, named.pop("min", None), named.pop("max", None), **named)

    def conj(self) -> Any:
        """The complex conjugate; the array itself where it is real."""
        array: Any = self
        return np.conjugate(array) if self.dtype.kind == "c" else self

    conjugate = conj

    def fill(self, value: Any) -> None:
        """Write one number everywhere."""
        array: Any = self
        array[...] = value

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, _: dict) -> Any:
        return self.copy()


class Shaped(Elements):
    """An array of known shape."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self._cell.read().shape

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape, dtype=int))

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> Any:
        """The same numbers in another shape: a view, or perhaps one."""
        cell = shapes.reshaped(self._cell, shapes.shape_from(shape), order)
        return self._shaped(Owner(cell.read()) if copy else cell)

    def ravel(self, order: str = "C") -> Any:
        """In one dimension: perhaps a view."""
        return self._shaped(shapes.raveled(self._cell, order))

    def flatten(self, order: str = "C") -> Any:
        """A copy in one dimension."""
        return self.ravel(order).copy()

    def squeeze(self, axis: Any = None) -> Any:
        """Without axes of length one."""
        return self._with(shapes.squeezed(self._cell, axis))

    def transpose(self, *axes: Any) -> Any:
        """A view with the axes in another order."""
        return self._with(shapes.transposed(self._cell, axes))

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        """A view with two axes in each other's place."""
        return self._with(shapes.swapped(self._cell, axis1, axis2))

    @property
    def T(self) -> Any:
        """A view with the axes the other way round."""
        return self.transpose()

    def _shaped(self, cell: Cell) -> Any:
        """An array, also where this is a number."""
        raise NotImplementedError
