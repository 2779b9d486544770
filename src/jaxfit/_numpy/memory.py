"""Memory that can be written to, made of values that cannot.

An array of NumPy is a window on memory. Others may look at the same, and what one
writes the others see. Here a value is an immutable array of JAX or of NumPy, and memory
is a cell that holds the newest one. A view knows the cell it looks at, what it reads of
it and how it writes back. Whether NumPy makes a view or a copy depends at times on how
an array lies in memory (`reshape`, `ravel`), or the view is one that nobody writes
through (`flip`, `split`). Such a result is a `Relative`: a copy, which refuses to be
read once the array that it was taken from has been written to, and the other way round.
"""

from collections.abc import Callable
from typing import Any, Union

import jax

from jaxfit._numpy.needs import NeedsHost, step, the_call

Value = Any  # an array of JAX, or of NumPy where it depends on nothing traced


class Owner:
    """Memory of its own."""

    def __init__(self, value: Value) -> None:
        self._value = value
        self._writes = 0
        self._is_doubtful = self._is_lent = False
        self._call = the_call()

    @property
    def version(self) -> int:
        """How often it was written to."""
        return self._writes

    def read(self) -> Value:
        """The newest value."""
        if self._call is not the_call():
            raise NeedsHost("it keeps what it computes from one call to the next")
        if self._is_doubtful:
            raise NeedsHost(IN_DOUBT)
        return self._value

    def write(self, value: Value) -> None:
        """Put another value of the same shape and dtype."""
        if self._is_lent:
            raise NeedsHost(
                "it writes to an array that np.asarray, or an array of NumPy's own, "
                "may look at, or to one that is read-only"
            )
        if isinstance(value, jax.Array):
            step()
        self._value = value
        self._writes += 1

    def lend(self) -> None:
        """Let nobody write any more: NumPy has the value as an array of its own."""
        self._is_lent = True

    def doubt(self) -> None:
        """Let nobody read any more."""
        self._is_doubtful = True
        self._writes += 1


class View:
    """A part of other memory, or the same in another shape."""

    def __init__(
        self,
        cell: Union[Owner, "View"],
        get: Callable[[Value], Value],
        put: Callable[[Value, Value], Value],
    ) -> None:
        self._cell, self._get, self._put = cell, get, put
        self._whole = cell.read()
        self._part = get(self._whole)

    @property
    def version(self) -> int:
        """That of the memory it looks at."""
        return self._cell.version

    def read(self) -> Value:
        """What is there now."""
        whole = self._cell.read()
        if whole is not self._whole:
            self._whole, self._part = whole, self._get(whole)
        return self._part

    def write(self, value: Value) -> None:
        """Write through."""
        self._cell.write(self._put(self._cell.read(), value))

    def lend(self) -> None:
        """Let nobody write to the memory it looks at."""
        self._cell.lend()

    def doubt(self) -> None:
        """Let nobody read the memory it looks at."""
        self._cell.doubt()


class Relative(Owner):
    """What is a view or a copy: both, until one of the two is written to."""

    def __init__(self, value: Value, other: Owner | View) -> None:
        super().__init__(value)
        self._other, self._seen = other, other.version

    @property
    def version(self) -> int:
        """How often it, or what it may be a view of, was written to."""
        return self._writes + self._other.version

    def read(self) -> Value:
        """The value, if the other was left alone."""
        if self._other.version != self._seen:
            raise NeedsHost(IN_DOUBT)
        return super().read()

    def write(self, value: Value) -> None:
        """Put another value, after which the other cannot be read."""
        self._other.doubt()
        self._seen = self._other.version
        super().write(value)

    def lend(self) -> None:
        """Let nobody write to it, nor to the other."""
        self._other.lend()
        super().lend()

    def doubt(self) -> None:
        """Let nobody read it, nor the other."""
        self._other.doubt()
        super().doubt()


Cell = Owner | View

IN_DOUBT = (
    "it writes to an array and then uses another that may be a view of it (reshape or "
    "ravel of more dimensions, flip, split, diagonal, broadcast_to). Write to a copy, "
    "`y.ravel().copy()`"
)
