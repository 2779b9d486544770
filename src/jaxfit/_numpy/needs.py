"""What a function written in NumPy does that cannot be traced: it needs the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_refusals: ContextVar[list["NeedsHost"] | None] = ContextVar("_refusals", default=None)


class NeedsHost(Exception):
    """A function cannot be traced, and has to run on the host.

    Attributes:
        reason: what it does, as the end of a sentence that begins with the function.
        place: the user's line that does it, or "".
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason + place)
        self.reason, self.place = reason, place
        refused = _refusals.get()
        if refused is not None:
            refused.append(self)


@contextmanager
def refusals() -> Iterator[list[NeedsHost]]:
    """All refusals from here on, those too that somebody catches on their way.

    A model's own `except Exception`, or NumPy trying one thing after the other, would
    else go on with something else than NumPy computes.
    """
    refused: list[NeedsHost] = []
    token = _refusals.set(refused)
    try:
        yield refused
    finally:
        _refusals.reset(token)


def the_call() -> object:
    """What stands for the call of a user's function that is going on."""
    return _refusals.get()
