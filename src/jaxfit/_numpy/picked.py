"""Elements that a traced condition picks: the whole array beside its mask.

How many elements `x[x > t]` has is not known where t is traced. They stay in their
places in the whole, and what is computed elsewhere beside them is dropped in the end:
an assignment is a `where`, a sum adds zeros. It must not leave a trace in a derivative
either, which it would where it is NaN or infinite, as that of `log(x[x > 0])` is for
some x that are not picked. So all that comes in is shielded: it has no slope outside.

Two conditions that are not one for sure are compared as the program runs. Where they
differ, NumPy would combine other elements, or none, and the model's result is NaN.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit._numpy.asked import Uncounted
from jaxfit._numpy.by_function import ByFunction
from jaxfit._numpy.calls import call_method
from jaxfit._numpy.indices import is_view
from jaxfit._numpy.inside import as_array
from jaxfit._numpy.memory import Cell, Owner, Value, View
from jaxfit._numpy.needs import once, require
from jaxfit._numpy.shaped import Elements
from jaxfit._numpy.traced import SPEAKERS, wrapped
from jaxfit._numpy.values import cast, is_known, put


class Picked(Uncounted, Elements, ByFunction):
    """Elements along the first axis of an array, where a mask holds.

    Args:
        cell: where the whole array is; outside the mask its values mean nothing.
        mask: one dimension of traced booleans.
    """

    __array_priority__ = 1001
    __slots__ = ("_cell", "_mask")
    _is_scalar = False

    def __init__(self, cell: Cell, mask: jax.Array) -> None:
        self._cell, self._mask = cell, mask

    def _with(self, cell: Cell) -> "Picked":
        return Picked(cell, self._mask)

    def __repr__(self) -> str:
        return f"Picked(ndim={self.ndim}, dtype={self.dtype})"

    @property
    def mask(self) -> jax.Array:
        """Where the whole array is picked, in one dimension."""
        return self._mask

    @property
    def whole(self) -> Value:
        """The whole array."""
        return self._cell.read()

    @property
    def ndim(self) -> int:
        """How many axes there are: the picked one, and those that follow."""
        return self.whole.ndim

    @property
    def size(self) -> Any:
        """How many numbers are picked: a traced number."""
        return wrapped(jnp.sum(self._mask) * int(np.prod(self.whole.shape[1:])))

    # What NumPy asks for

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any
    ) -> Any:
        """Call the twin of a universal function with the whole arrays."""
        outs: tuple[Any, ...] = settings.pop("out", None) or (None,) * ufunc.nout
        if not all(
            isinstance(value, (*SPEAKERS, Picked)) for value in (*inputs, *outs)
        ):
            return NotImplemented
        if method == "reduce" and ufunc in _REDUCING:
            first, *axis = inputs
            settings = {"axis": 0} | settings | ({"axis": axis[0]} if axis else {})
            return _REDUCING[ufunc](first, **settings)
        if ufunc is np.matmul:
            return np.dot(*inputs)
        is_ours = all(out is None or isinstance(out, Picked) for out in outs)
        is_call = method == "__call__" and settings.get("where", True) is True
        if not (is_call and is_ours) or ufunc.signature is not None:
            self.refuse(f"calls {ufunc.__name__} in a way that needs all {_ELEMENTS}")
        like = next(value for value in (*outs, *inputs) if isinstance(value, Picked))
        operands = [operand(value, like) for value in inputs]
        with np.errstate(all="ignore"):  # of elements that are dropped
            results = call_method(ufunc, method, operands, settings)
        results = results if isinstance(results, tuple) else (results,)
        handed = [
            like.with_value(result) if out is None else out.hand_over(result, like)
            for result, out in zip(results, outs, strict=True)
        ]
        return tuple(handed) if len(handed) > 1 else handed[0]

    def __array_function__(
        self, function: Any, types: Any, arguments: Sequence[Any], keywords: dict
    ) -> Any:
        """Call what a function of NumPy's is for picked elements."""
        from jaxfit._numpy.of_picked import OF_PICKED  # above: late

        name = f"{function.__module__}.{function.__name__}"
        if function not in OF_PICKED:
            self.refuse(f"calls {name} with {_ELEMENTS}")
        keywords = {k: v for k, v in keywords.items() if v is not np._NoValue}
        try:
            return OF_PICKED[function](*arguments, **keywords)
        except TypeError:
            self.refuse(f"calls {name} in a way that needs all {_ELEMENTS}")

    def with_value(self, whole: Value) -> "Picked":
        """Another value for the same elements."""
        return Picked(Owner(whole), self._mask)

    def hand_over(self, result: Value, like: "Picked") -> "Picked":
        """Write a result of computing, as `out=` does."""
        require_same(self._mask, like._mask)
        if not np.can_cast(np.dtype(result.dtype), self.dtype, "same_kind"):
            raise TypeError(f"cannot cast output from {result.dtype} to {self.dtype}")
        if result.shape != self.whole.shape:
            self.refuse(f"writes into {_ELEMENTS}")
        self._cell.write(cast(result, self.dtype))
        return self

    # Reading and writing

    def __getitem__(self, index: Any) -> Any:
        whole = self.whole
        if isinstance(index, Picked) and index.dtype == bool:
            return picked_where(whole, self._mask_within(index))
        is_number = isinstance(index, (int, np.integer)) and index is not True
        if is_number and index is not False and self.ndim == 1:
            return self._nth(int(index))
        parts = index if isinstance(index, tuple) else (index,)
        is_all = isinstance(parts[0], slice) and parts[0] == slice(None)
        if not (is_all and is_view(parts)) and index is not Ellipsis:
            self.refuse(f"takes a part of {_ELEMENTS}")
        return self._with(
            View(self._cell, itemgetter(parts), partial(put, index=parts))
        )

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, Picked) and index.dtype == bool:
            part = Picked(self._cell, self._mask_within(index))
        elif isinstance(index, (slice, tuple)) or index is Ellipsis:
            part = self[index]
        else:
            self.refuse(f"writes to a part of {_ELEMENTS}")
        part._cell.write(written_where(part.whole, part.mask, value))

    def _mask_within(self, condition: "Picked") -> jax.Array:
        require_same(self._mask, condition._mask)
        masks = self._mask, condition.whole
        return once("and", masks, lambda: jnp.logical_and(*masks))

    def _nth(self, place: int) -> Any:
        """The element at a place among the picked; an error of NumPy's makes NaN."""
        order = jnp.cumsum(self._mask if place >= 0 else self._mask[::-1])
        nth = place + 1 if place >= 0 else -place
        require(order[-1] >= nth if order.size else jnp.asarray(False))
        at = jnp.argmax(order == nth) if place >= 0 else -1 - jnp.argmax(order == nth)
        return wrapped(jnp.asarray(self.whole)[at])

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse(f"asks for the number, the shape or the values of {_ELEMENTS}")

    __len__ = __iter__ = __array__ = __bool__ = __float__ = __int__ = _refuse
    __index__ = __complex__ = __str__ = __format__ = __contains__ = _refuse

    def __hash__(self) -> int:
        return self._refuse()

    def __getattr__(self, name: str) -> Any:
        if hasattr(np.ndarray, name) and not name.startswith("__"):
            self.refuse(f"uses `.{name}` of {_ELEMENTS}")
        raise AttributeError(name)


_ELEMENTS = "elements that a condition on a parameter picks"
_REDUCING: dict[Any, Callable] = {
    np.add: np.sum,
    np.multiply: np.prod,
    np.maximum: np.max,
    np.minimum: np.min,
    np.logical_or: np.any,
    np.logical_and: np.all,
}


# Masks


def picked_where(whole: Value, mask: jax.Array) -> Picked:
    """The elements along the first axis where the mask holds, with memory of their
    own."""
    return Picked(Owner(shielded(whole, mask, whole.ndim)), mask)


def beside(mask: jax.Array, ndim: int) -> jax.Array:
    """The mask with axes for those of an array of which it picks along the first."""
    return mask.reshape(-1, *[1] * (ndim - 1))


def shielded(value: Value, mask: jax.Array, ndim: int) -> Value:
    """The value for each element of the mask, without slope where it does not hold.

    A slope of what is computed there, even NaN, is selected away where it would come
    in, forwards and backwards.
    """
    if is_known(value) or np.dtype(value.dtype).kind not in "fc":
        return value

    def shield() -> jax.Array:
        return jnp.where(beside(mask, ndim), value, lax.stop_gradient(value))

    return once(("shielded", ndim), [value, mask], shield)


def require_same(mask: jax.Array, other: jax.Array) -> None:
    """Let the result be NaN where two masks differ."""
    if mask is other:
        return
    if mask.shape != other.shape:
        Uncounted().refuse("combines elements picked of arrays of different lengths")
    require(jnp.all(mask == other))


def operand(value: Any, like: Picked) -> Value:
    """The value as it stands beside the whole array of what is picked."""
    if isinstance(value, Picked):
        require_same(like.mask, value.mask)
        if value.ndim != like.ndim:
            like.refuse(f"combines {_ELEMENTS}, in different dimensions")
        return value.whole
    value = as_array(value)
    shape = np.shape(value)
    if len(shape) > like.ndim or (len(shape) == like.ndim and shape[0] != 1):
        like.refuse(f"combines a whole array with {_ELEMENTS}")
    return shielded(value, like.mask, like.ndim)


def written_where(whole: Value, mask: jax.Array, part: Any) -> jax.Array:
    """The whole with a value, or picked elements, where the mask holds."""
    like = Picked(Owner(whole), mask)
    if not isinstance(part, Picked):
        part = as_array(part)
        while np.ndim(part) >= max(whole.ndim, 1) and part.shape[0] == 1:
            part = part[0]  # as NumPy does for an assignment
    new = cast(operand(part, like), whole.dtype)
    if np.broadcast_shapes(new.shape, whole.shape) != whole.shape:
        like.refuse(f"writes an array of another shape to {_ELEMENTS}")
    return jnp.where(beside(mask, whole.ndim), new, whole)
