"""What a fit seldom needs, left out of its first program.

A Jacobian that has lost its digits wants rotations and a frame, and a fit that stalls
may have stalled on a kink: half of the program, and of the time that it takes to
compile, for few fits in a hundred. So an eager call on a CPU has a lean program without
them first. It says of a fit that needs them that it is incomplete, and the whole
program does that fit anew. What both compute is the same.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import PyTree

from jaxfit._small import Flag, branch

_here = threading.local()


@contextlib.contextmanager
def noted(is_lean: bool) -> Iterator[list[Flag]]:
    """What `seldom` leaves out meanwhile, if the program is lean: when it is needed."""
    before, needed = _missed(), []
    _here.missed = needed if is_lean else None
    try:
        yield needed
    finally:
        _here.missed = before


def is_lean() -> bool:
    """Whether a lean program is traced."""
    return _missed() is not None


def _missed() -> Any:
    return getattr(_here, "missed", None)


def seldom(
    needed: Flag, then: Callable, otherwise: Callable, *operands: PyTree
) -> PyTree:
    """`branch`, whose first function a lean program leaves out."""
    missed = _missed()
    if missed is None:
        return branch(needed, then, otherwise, *operands)
    missed.append(needed)
    return otherwise(*operands)
