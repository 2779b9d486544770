"""What a function written in NumPy does that cannot be traced: it needs the host.

One call of a user's function has a record of what it was refused, of what has to hold
for its result to be NumPy's, and of what it has computed already.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np


class NeedsHost(Exception):
    """A function cannot be traced, and has to run on the host.

    Attributes:
        reason: what it does, as the end of a sentence that begins with the function.
        place: the user's line that does it, or "".
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason + place)
        self.reason, self.place = reason, place
        call = the_call()
        if call is not None:
            call.refused.append(self)


class Call:
    """One call of a user's function.

    Attributes:
        refused: all refusals, those too that somebody catches on their way. A model's
            own `except Exception`, or NumPy trying one thing after the other, would
            else go on with something else than NumPy computes.
        required: traced booleans; where one is false NumPy gives something else, or an
            error.
        uses_jax: whether it was given to a function of JAX's, or met an array of JAX.
        steps: how many operations on traced values, and writes of them, it may do.
    """

    def __init__(self, steps: float = math.inf) -> None:
        self.uses_jax = False
        self.steps = steps
        self.refused: list[NeedsHost] = []
        self.required: list[jax.Array] = []
        self._results: dict[Hashable, Any] = {}

    def once(self, name: Any, operands: Sequence[Any], compute: Callable) -> Any:
        """What was computed of the same operands before, or is now.

        A condition that is written twice thereby has one value, as its masks are the
        same.
        """
        keys = [_key(operand) for operand in operands]
        if None in keys:
            return compute()
        key = (name, *keys)
        if key not in self._results:  # with the operands, which keeps their ids theirs
            self._results[key] = operands, compute()
        return self._results[key][1]


def _key(operand: Any) -> Hashable | None:
    """What tells an operand that never changes from others, None if it may change."""
    if isinstance(operand, (int, float, complex, np.generic)):
        return type(operand), repr(operand)
    is_fixed = isinstance(operand, jax.Array)
    if isinstance(operand, np.ndarray):
        is_fixed = not operand.flags.writeable
    return id(operand) if is_fixed else None


_calls: ContextVar[Call | None] = ContextVar("_calls", default=None)


@contextmanager
def call(steps: float = math.inf) -> Iterator[Call]:
    """A call of a user's function, from here on, of so many steps at most."""
    begun = Call(steps)
    token = _calls.set(begun)
    try:
        yield begun
    finally:
        _calls.reset(token)


def the_call() -> Call | None:
    """The call of a user's function that is going on."""
    return _calls.get()


def note_jax() -> None:
    """Note that the call that is going on uses JAX."""
    going_on = the_call()
    if going_on is not None:
        going_on.uses_jax = True


def step(number: int = 1) -> None:
    """Count steps of the call that is going on.

    Raises:
        NeedsHost: if it has done as many as it may.
    """
    going_on = the_call()
    if going_on is None:
        return
    going_on.steps -= number
    if going_on.steps < 0:
        raise NeedsHost(
            "it computes element by element, in so many steps that a compiler takes "
            "longer than NumPy. Write it with whole arrays"
        )


def require(condition: jax.Array) -> None:
    """Let the result be NaN where the condition does not hold.

    Raises:
        NeedsHost: outside of a call.
    """
    going_on = the_call()
    if going_on is None:
        raise NeedsHost("it goes on after its call")
    going_on.required.append(condition)


def once(name: Any, operands: Sequence[Any], compute: Callable) -> Any:
    """What the call that is going on has computed before, or computes now."""
    going_on = the_call()
    return compute() if going_on is None else going_on.once(name, operands, compute)
