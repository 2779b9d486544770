"""What a fit seldom needs, left out of its first program.

A Jacobian that has lost its digits wants rotations and a frame, and a fit that stalls
may have stalled on a kink: half of the program, and of the time that it takes to
compile, for few fits in a hundred. So an eager call on a CPU has a lean program without
them first. It says of a fit that needs them that it is incomplete, and the whole
program does that fit anew. What both compute is the same.

Nothing of it is seen by a function of the user: what is left out is left out inside of
`uncertainty_of` alone, and by `Setting.is_lean` in the loop itself.
"""

import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import PyTree

from jaxfit._linalg.branches import branch
from jaxfit._linalg.kernels import Flag


class _Here(threading.local):
    """What the program that is traced in this thread leaves out."""

    incomplete: list | None = None  # flags of the report that is traced
    missed: list | None = None  # flags of what `seldom` leaves out


_here = _Here()


@contextlib.contextmanager
def reporting(is_lean: bool) -> Iterator[list[Flag]]:
    """While a report is traced: the flags of `note`, none if it is that of a whole fit.

    A fit that a function of the user does meanwhile has a report of its own.
    """
    before, flags = _here.incomplete, []
    _here.incomplete = flags if is_lean else None
    try:
        yield flags
    finally:
        _here.incomplete = before


def note(flag: Flag) -> None:
    """Say of the report that is traced whether it is incomplete."""
    assert _here.incomplete is not None
    _here.incomplete.append(flag)


def uncertainty_of(solution: Any, absolute: Any) -> Any:
    """`solution.uncertainty(absolute)`, for a report."""
    if _here.incomplete is None:
        return solution.uncertainty(absolute)
    _here.missed = []
    try:
        uncertainty = solution.uncertainty(absolute)
        note(functools.reduce(operator.or_, _here.missed))
    finally:
        _here.missed = None
    return uncertainty


def is_lean() -> bool:
    """Whether what is seldom needed is left out now."""
    return _here.missed is not None


def seldom(
    needed: Flag, then: Callable, otherwise: Callable, *operands: PyTree
) -> PyTree:
    """`branch`, whose first function a lean program leaves out."""
    if _here.missed is None:
        return branch(needed, then, otherwise, *operands)
    _here.missed.append(needed)
    return otherwise(*operands)
