"""What is compiled once for all calls that are alike.

`jax.jit` knows a function by its identity, so that a lambda made anew on every call
would compile on every call. `compiled` knows it by its `Reading`, and makes inputs of
the numbers that it holds: a new residual function over new data is the same program.
"""

import contextlib
import contextvars
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.call import Call
from jaxfit._programs.fingerprint import ClosesOverTracer
from jaxfit._programs.outside import served
from jaxfit._programs.program import Program

CACHE_SIZE = 128
always_in_haste = False  # tests that run little of what they compile set it

_programs: OrderedDict[Hashable, Program] = OrderedDict()
_static: OrderedDict[Hashable, frozenset[int]] = OrderedDict()  # places of values
_incomplete: OrderedDict[Hashable, None] = OrderedDict()  # calls that were not lean
_lock = threading.Lock()
_latest = threading.local()
_only_known: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "_only_known", default=False
)


def compiled(
    function: Callable, *arguments: Any, donate: tuple = (), is_hasty: bool = False
) -> Any:
    """`function(*arguments, *donate)`, compiled once for all that are alike.

    Args:
        function: a function of this library; its identity is enough.
        arguments: pytrees. Arrays and numbers in them are inputs of the program, and so
            are the numbers that the user's functions among them hold; all else is part
            of the program.
        donate: further arguments, whose memory the results may take.
        is_hasty: compile in half the time what then takes twice as long, on CPUs.
    """
    call = _call(function, arguments, is_hasty)
    try:
        call.read()
    except ClosesOverTracer:
        return function(*arguments, *donate)
    return _results(call, donate)


def lean_first(function: Callable, *arguments: Any) -> Any:
    """`compiled`, of a function that can leave out what is seldom needed.

    Args:
        function: (is_lean, *arguments) -> results; if it is lean, with a flag that they
            are incomplete.
    """
    if is_eager_on_cpu(arguments):
        call = _call(specialised(function, True), arguments)
        with contextlib.suppress(ClosesOverTracer):
            call.read()
            if call.shape not in _incomplete:
                results, is_incomplete = _results(call)
                if not is_incomplete:
                    return results
                _note_incomplete(call)
    return compiled(specialised(function, False), *arguments)


@functools.cache
def specialised(function: Callable, *values: Hashable) -> Callable:
    """A function with its first arguments given: one object for equal values.

    `compiled` knows the functions of this library by their identity.
    """
    return functools.partial(function, *values)


class Prepared(NamedTuple):
    """A compiled program that any thread may call."""

    results: PyTree  # shapes and dtypes
    program: Callable  # of operands
    call: Call  # like all that it is for

    def __call__(self, *arguments: Any) -> Any:
        """The results for arguments like those that it was made for."""
        leaves = jax.tree.leaves(arguments)
        operands = self.call.inputs_like(leaves), self.call.new_values()
        return served(leaves, lambda: self.program(*operands, ()))


def prepared(function: Callable, *arguments: Any, is_hasty: bool = False) -> Prepared:
    """`compiled`, but for the call: for many arguments of the same shapes."""
    call = _call(function, arguments, is_hasty)
    call.read()
    program = _program_of(call)
    executable = program.compiled(call)
    if call.reading.is_known:
        _remember(program, call)
    _latest.reading = call.reading
    return Prepared(executable.out_info, executable, call)


@contextlib.contextmanager
def called_in_passing() -> Iterator[None]:
    """Let the user's functions of the latest call be called, as if they were traced.

    What they count or log meanwhile is no part of what they are: see `places.py`.
    """
    before = _latest.reading.snapshot()
    yield
    before.note_writes()


class IsNew(Exception):
    """There is no program yet for a call that was made `unless_new`."""


@contextlib.contextmanager
def unless_new() -> Iterator[None]:
    """Raise `IsNew` if the first program that is asked for has to be made."""
    token = _only_known.set(True)
    try:
        yield
    finally:
        _only_known.reset(token)


# Programs that were made


def _call(function: Callable, arguments: tuple, is_hasty: bool = False) -> Call:
    return Call(function, arguments, is_hasty or always_in_haste)


def _results(call: Call, donated: tuple = ()) -> Any:
    """What a program for calls like this gives."""
    program = _program_of(call)
    results = served(call.leaves, lambda: program(call, donated))
    _latest.reading = call.reading
    if call.reading.is_known:
        _remember(program, call)
    return results


def _program_of(call: Call) -> Program:
    """The program of calls like this, or a new one."""
    with _lock:
        call.static = _static.get(call.shape, frozenset())
        program = _programs.get(call.key())
    if _only_known.get():
        if program is None:
            raise IsNew
        _only_known.set(False)  # nothing of it is new to who asked
    return Program(call) if program is None else program


def _remember(program: Program, call: Call) -> None:
    """Keep a program for calls like this."""
    with _lock:
        call.static = _static.get(call.shape, frozenset()) | program.static
        key = call.key()
        if program.key != key:  # new, or traced again with more numbers in it
            _programs.pop(program.key, None)
            program.key, _programs[key] = key, program
            _static[call.shape] = call.static
        for cache, used in ((_programs, key), (_static, call.shape)):
            _make_latest(cache, used)


def _note_incomplete(call: Call) -> None:
    """Let calls like this have the whole program at once."""
    with _lock:
        _incomplete[call.shape] = None
        _make_latest(_incomplete, call.shape)


def _make_latest(cache: OrderedDict, key: Hashable) -> None:
    """Mark an entry as used; what was not used for longest goes."""
    cache.move_to_end(key)
    while len(cache) > CACHE_SIZE:
        cache.popitem(last=False)
