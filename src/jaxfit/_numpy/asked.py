"""What asks an array for its numbers: there are none where it is traced."""

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.memory import Cell, Value
from jaxfit._numpy.needs import NeedsHost, note_jax
from jaxfit._numpy.values import is_known


class Asked:
    """The numbers of an array for Python: known, or a reason for the host."""

    __slots__ = ()
    _cell: Cell
    _is_scalar: bool

    def __getattribute__(self, name: str) -> Any:
        """What NumPy's array, or number, would say it is: to isinstance and hasattr."""
        if name == "__class__":
            is_scalar = object.__getattribute__(self, "_is_scalar")
            return np.dtype(self._cell.read().dtype).type if is_scalar else np.ndarray
        if name in ("__len__", "__iter__") and self._is_scalar:
            raise AttributeError(f"'{self.__class__.__name__}' has no {name}")
        return object.__getattribute__(self, name)

    def __jax_array__(self) -> jax.Array:
        """The array of JAX, beside one that a user's function has made."""
        note_jax()
        return jnp.asarray(self._cell.read())

    def _number(self, kind: Callable[[Any], Any], words: str) -> Any:
        value = self._cell.read()
        if is_known(value):
            return kind(value)
        raise NeedsHost(f"it asks for the value of a parameter, or of what it {words}")

    def __bool__(self) -> bool:
        return self._number(bool, _BRANCH)

    def __float__(self) -> float:
        return self._number(float, _NUMBER)

    def __int__(self) -> int:
        return self._number(int, _NUMBER)

    def __complex__(self) -> complex:
        return self._number(complex, _NUMBER)

    def __index__(self) -> int:
        return self._number(operator.index, _COUNT)

    def __hash__(self) -> int:
        return self._number(_hash, "computes, as a key")

    def __str__(self) -> str:
        return self._number(str, "computes, to write it into a text")

    def __format__(self, form: str) -> str:
        return self._number(lambda value: format(value, form), "computes, as a text")

    def __round__(self, digits: int | None = None) -> Any:
        if digits is None:
            return self._number(round, _NUMBER)
        array: Any = self
        return np.round(array, digits)

    def item(self, *place: Any) -> Any:
        """One number, where it is known."""
        return self._number(lambda value: value.item(*place), _NUMBER)

    def tolist(self) -> Any:
        """Python's numbers, where they are known."""
        return self._number(lambda value: value.tolist(), _NUMBER)


_BRANCH = (
    "computes, by `if`, `while`, `and`, `min` or `max`. Write `np.where(condition, a, "
    "b)`, `np.minimum` or `np.maximum`"
)
_NUMBER = (
    "computes: by float() or int(), the math module, or a function of C or Python that "
    "takes plain numbers. Write np.exp for math.exp"
)
_COUNT = "computes, as a length or a place: range(), np.zeros(n), `y[:n]`"


class Uncounted:
    """Elements of which it is not known how many there are."""

    __slots__ = ()

    def refuse(self, what: str) -> NoReturn:
        """Say that the host is needed, since the function does this."""
        raise NeedsHost(
            f"it {what}, and how many there are is not known. Write "
            "`np.where(condition, a, b)` with a and b for all elements"
        )


def _hash(value: Value) -> int:
    return hash(value[()])
