"""A value that speaks NumPy and computes in JAX.

NumPy asks its arguments for `__array_ufunc__` and `__array_function__` before it does
anything by itself. `Traced` answers with the twin in JAX, and so a function written in
NumPy is traced as it stands. What depends on nothing traced stays an array of NumPy
inside of it, and NumPy computes with that: its masks have known places, and its numbers
can be asked for.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jaxfit._numpy.asked import Asked, Uncounted
from jaxfit._numpy.by_function import ByFunction
from jaxfit._numpy.calls import call_function, call_method, call_where
from jaxfit._numpy.indices import (
    Index,
    at_traced,
    is_number,
    is_view,
    written,
)
from jaxfit._numpy.inside import as_array, as_index, is_choice, operand, raw
from jaxfit._numpy.memory import Cell, Owner, Relative, Value, View
from jaxfit._numpy.needs import NeedsHost, note_jax, once
from jaxfit._numpy.shaped import Shaped
from jaxfit._numpy.tables import FRESH, PERHAPS_VIEWS, SPOKEN
from jaxfit._numpy.ufuncs import add_at
from jaxfit._numpy.values import WIDE, alike, fitted, is_known, put

SMALL = 256  # elements that become an array of objects of NumPy's


class Traced(Asked, Shaped, ByFunction):
    """An array, or a number, of which NumPy's functions know what to do.

    Args:
        cell: where its value is.
        is_scalar: whether it is one of NumPy's numbers, which never change.
    """

    __array_priority__ = 1000
    __slots__ = ("_cell", "_is_scalar")

    def __init__(self, cell: Cell, is_scalar: bool = False) -> None:
        self._cell, self._is_scalar = cell, is_scalar

    def __repr__(self) -> str:
        return f"Traced(shape={self.shape}, dtype={self.dtype})"

    def _with(self, cell: Cell) -> "Traced":
        return Traced(cell, self._is_scalar)

    def _shaped(self, cell: Cell) -> "Traced":
        return Traced(Owner(cell.read()) if self._is_scalar else cell)

    # What NumPy asks for

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any
    ) -> Any:
        """Call the twin of one of NumPy's or SciPy's universal functions."""
        outs: tuple[Any, ...] = settings.pop("out", None) or (None,) * ufunc.nout
        if method == "at":
            return self._act_at(ufunc, *inputs)
        if not all(isinstance(value, SPEAKERS) for value in (*inputs, *outs)):
            return NotImplemented
        if any(isinstance(value, jax.Array) for value in inputs):
            note_jax()
        values = [as_array(value) for value in inputs]
        settings = {name: raw(value) for name, value in settings.items()}
        if method == "__call__" and settings.get("where", True) is not True:
            before = [None if out is None else raw(out) for out in outs]
            results = call_where(ufunc, values, before, settings)
        else:
            results = call_method(ufunc, method, values, settings)
        results = results if isinstance(results, tuple) else (results,)
        pairs = zip(results, outs, strict=True)
        casting = settings.get("casting", "same_kind")
        handed = [_handed(result, out, casting) for result, out in pairs]
        return tuple(handed) if len(handed) > 1 else handed[0]

    def __array_function__(
        self, function: Any, types: Any, arguments: Sequence[Any], keywords: dict
    ) -> Any:
        """Call the twin of another function of NumPy's."""
        if any(issubclass(kind, Uncounted) for kind in types):
            return NotImplemented
        if function is np.where and len(arguments) + len(keywords) == 1:
            function = np.nonzero
        if function in SPOKEN:
            return SPOKEN[function](*arguments, **keywords)
        keywords = dict(keywords)
        out = keywords.pop("out", None)
        operands = [operand(function, value) for value in arguments]
        named = {name: operand(function, value) for name, value in keywords.items()}
        result = call_function(function, operands, named)
        if out is not None:
            return _handed(result, out)
        first = next(iter((*arguments, *keywords.values())), None)
        if isinstance(first, Traced) and _is_window(function, result, operands):
            return wrapped(result, partial(Relative, other=first._cell))
        whole = wrapped(result)
        if function in FRESH and isinstance(whole, Traced):
            whole._is_scalar = False
        return whole

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """An array of NumPy, where it is known; a small one of objects, if not."""
        value, is_copy = self._cell.read(), bool(copy) or self._is_scalar
        if not is_copy:
            self._cell.lend()
        if is_known(value):
            array = np.array(value, dtype)
            array.flags.writeable = is_copy
            return array
        if dtype is not None and np.dtype(dtype) != object:
            raise NeedsHost(
                "it puts what it has computed into an array of NumPy's own, as "
                "`y = np.zeros(n); y[:] = p * x` or np.array(..., dtype=float) do. "
                "Write `y = np.zeros_like(p * x)`, np.stack for np.array, and leave "
                "`x = np.asarray(x)` out"
            )
        if self.size > SMALL or self.dtype not in WIDE:
            raise NeedsHost(
                "it makes an array of NumPy's own of what it has computed, a long one "
                "or one of few bits, by np.array or a function that begins with "
                "np.asarray. Write np.stack, or leave np.asarray out"
            )
        array = np.empty(self.shape, object)
        for place in np.ndindex(self.shape):
            array[place] = wrapped(value[place])
        array.flags.writeable = is_copy
        return array

    def _act_at(self, ufunc: np.ufunc, whole: Any, index: Any, *others: Any) -> None:
        values = [as_array(other) for other in others]
        if not isinstance(whole, Traced):
            if not is_known(values):
                raise NeedsHost("it calls a ufunc's `at` for an array of NumPy's own")
            return ufunc.at(whole, raw(index), *values)
        before, places = whole._cell.read(), as_index(index)
        whole._cell.write(add_at(ufunc, before, places, values))

    # Reading and writing

    def __getitem__(self, index: Index) -> Any:
        if is_choice(index):
            return _choices().picked(self, index)
        value, index = self._cell.read(), as_index(index)
        if not is_known(index):
            return wrapped(at_traced(value, index), partial(Relative, other=self._cell))
        if is_number(index, self.shape):
            if is_known(value):
                return wrapped(value[index])
            places = index if isinstance(index, tuple) else (index,)
            return wrapped(once("at", [value, *places], lambda: value[index]))
        if not is_view(index):
            return wrapped(value[index])
        get, back = operator.itemgetter(index), partial(put, index=index)
        return Traced(View(self._cell, get, back))

    def __setitem__(self, index: Index, value: Any) -> None:
        if self._is_scalar:
            raise TypeError("a number does not support item assignment")
        if is_choice(index) or isinstance(value, Uncounted):
            return _choices().write(self, index, value)
        whole, part = self._cell.read(), as_array(value)
        self._cell.write(written(whole, as_index(index), part))

    def __iter__(self) -> Iterator[Any]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[k] for k in range(len(self)))

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def nonzero(self) -> tuple[Any, ...]:
        """Where it is not zero."""
        value = self._cell.read()
        if is_known(value):
            return tuple(map(wrapped, np.nonzero(value)))
        return _choices().places(value)

    def sort(self, axis: int = -1, kind: Any = None, **settings: Any) -> None:
        """Sort in place."""
        self[...] = np.sort(self, axis=axis, kind=kind, **settings)

    def hand_over(self, value: Value, casting: Any) -> "Traced":
        """Write a result of computing, as `out=` does."""
        if self._is_scalar:
            raise TypeError("return arrays must be of ArrayType")
        if not np.can_cast(np.dtype(value.dtype), self.dtype, casting):
            raise TypeError(f"cannot cast output from {value.dtype} to {self.dtype}")
        if np.broadcast_shapes(np.shape(value), self.shape) != self.shape:
            raise ValueError(f"non-broadcastable output operand of shape {self.shape}")
        self._cell.write(fitted(value, self.shape, self.dtype))
        return self


# In and out of it

SPEAKERS = (
    *(Traced, jax.Array, np.ndarray, np.generic, int, float, complex, list, tuple),
    type(None),
)


def wrapped(value: Any, cell: Callable[[Value], Cell] = Owner) -> Any:
    """A result as the user's function may see it: arrays speak NumPy."""
    if isinstance(value, jax.Array):
        return Traced(cell(value), is_scalar=not value.ndim)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = value.view()
        value.flags.writeable = False  # it is the value of a cell
        return Traced(cell(value))
    if isinstance(value, (list, tuple)):
        return alike(value, (wrapped(part, cell) for part in value))
    return value


def _is_window(function: Callable, result: Any, operands: Sequence[Any]) -> bool:
    """Whether NumPy makes a view, perhaps, of what it was given."""
    if function in PERHAPS_VIEWS:
        return True
    given = [value for value in operands if type(value) is np.ndarray]
    is_array = type(result) is np.ndarray
    return is_array and any(np.may_share_memory(result, value) for value in given)


def _choices() -> ModuleType:
    """Where elements are chosen, which is written with this file."""
    from jaxfit._numpy import choices  # above: late

    return choices


def _handed(result: Value, out: Any, casting: Any = "same_kind") -> Any:
    """The result, or what it was written to."""
    if out is None:
        return wrapped(result)
    if isinstance(out, tuple):
        (only,) = out
        return _handed(result, only, casting)
    if isinstance(out, Traced):
        return out.hand_over(result, casting)
    if not is_known(result):
        raise NeedsHost(
            "it puts what it has computed into an array of NumPy's own, as `y = "
            "np.zeros(n); y += p * x` does. Write `y = np.zeros_like(p * x)`"
        )
    np.copyto(out, result, casting=casting)
    return out
