"""The same numbers in another shape or order: views, or what may be one."""

import operator
from typing import Any

import numpy as np

from jaxfit._numpy.memory import Cell, Owner, Relative, View
from jaxfit._numpy.values import stand_in


def shape_from(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of `reshape(2, 3)`, `reshape((2, 3))` and `reshape(6)`."""
    shape: Any = arguments[0] if len(arguments) == 1 else arguments
    return tuple(map(operator.index, shape if np.ndim(shape) else [shape]))


def reshaped(cell: Cell, shape: tuple[int, ...], order: str = "C") -> Cell:
    """In another shape: a view for sure if only axes of length one come or go, or if
    there was one axis. If not, it depends on the order in memory."""
    before = cell.read()
    value = before.reshape(shape, order=order)
    sizes = [[size for size in array.shape if size != 1] for array in (before, value)]
    is_sure = before.ndim < 2 or sizes[0] == sizes[1]
    if not is_sure or order not in "CA":
        return Relative(value, cell)
    return View(
        cell,
        get=lambda whole: whole.reshape(value.shape),
        put=lambda _, part: part.reshape(before.shape),
    )


def raveled(cell: Cell, order: str) -> Cell:
    """In one dimension: a copy if the numbers lie apart in memory."""
    if cell.read().ndim == 1 and type(cell) is Owner:
        return reshaped(cell, (-1,))
    value = cell.read().reshape(-1, order="F" if order == "F" else "C")
    return Relative(value, cell)


def squeezed(cell: Cell, axis: Any) -> Cell:
    """Without axes of length one."""
    shape = np.squeeze(stand_in(cell.read().shape), axis).shape
    return reshaped(cell, shape)


def transposed(cell: Cell, axes: tuple[Any, ...]) -> Cell:
    """With the axes in another order, by default the other way round."""
    ndim = cell.read().ndim
    given = axes[0] if len(axes) == 1 else axes or None
    order = range(ndim)[::-1] if given is None else np.atleast_1d(given).tolist()
    np.transpose(stand_in(cell.read().shape), order)  # which raises where it is wrong
    places = tuple(k % max(ndim, 1) for k in order)
    inverse = tuple(np.argsort(places).tolist())
    return View(
        cell,
        get=lambda whole: whole.transpose(places),
        put=lambda _, part: part.transpose(inverse),
    )


def swapped(cell: Cell, axis1: int, axis2: int) -> Cell:
    """With two axes in each other's place."""
    order = list(range(cell.read().ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return transposed(cell, (order,))


def real_part(cell: Cell) -> Cell:
    """The real part, or the whole where it is real."""
    if np.dtype(cell.read().dtype).kind != "c":
        return View(cell, lambda z: z, lambda z, part: part)
    return View(cell, lambda z: z.real, lambda z, part: part + 1j * z.imag)


def imaginary_part(cell: Cell) -> Cell:
    """The imaginary part, or zeros."""
    value = cell.read()
    if np.dtype(value.dtype).kind != "c":
        zeros = Owner(np.zeros(value.shape, value.dtype))
        zeros.lend()
        return zeros
    return View(cell, lambda z: z.imag, lambda z, part: z.real + 1j * part)
