"""What is compiled once for all calls that are alike.

`jax.jit` knows a function by its identity, so that a lambda made anew on every call
would compile on every call. `compiled` knows it by its `Reading`, and makes inputs of
the numbers that it holds: a new residual function over new data is the same program.
"""

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state
from jaxtyping import PyTree

from jaxfit._programs.arrays import is_extended
from jaxfit._programs.fingerprint import (
    ClosesOverTracer,
    Part,
    Reading,
    content,
    is_pure,
)
from jaxfit._programs.hoist import Held, opened
from jaxfit._programs.one_function import program_of_ours

CACHE_SIZE = 128

# One LLVM module compiles a fit in three quarters of the time that several in parallel
# take, and XLA's older emitters halve it; the program runs as fast. Releases of jax
# that have no such choice any more refuse it.
ONE_MODULE = {
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_backend_optimization_level": 3,
}
COMPILER_OPTIONS = {**ONE_MODULE, "xla_cpu_use_fusion_emitters": False}, ONE_MODULE
IN_HASTE = {"xla_backend_optimization_level": 0}
always_in_haste = False  # tests that run little of what they compile set it

_programs: OrderedDict[Hashable, "_Program"] = OrderedDict()
_static: OrderedDict[Hashable, frozenset[int]] = OrderedDict()  # values by reading
_incomplete: OrderedDict[Hashable, None] = OrderedDict()  # calls that were not lean
_plain_structures: dict[Hashable, Hashable] = {}
_lock = threading.Lock()


class Static(eqx.Module):
    """A value among the arguments of `compiled` that is part of the program."""

    value: Any = eqx.field(static=True)


def compiled(
    function: Callable,
    callables: Any,
    arguments: Any,
    *donated: Any,
    is_hasty: bool = False,
) -> Any:
    """`function(callables, arguments)`, compiled once for all that are alike.

    Args:
        function: a function of this library; its identity is enough.
        callables: a pytree of the user's functions and modules. Arrays in it are
            inputs of the program, and so are the numbers that the functions hold.
        arguments: a pytree; what is no array or number in it is part of the program.
        donated: further arguments of the function, whose memory its results may take.
        is_hasty: compile in half the time what then takes twice as long, on CPUs.
    """
    call = _Call(function, (callables, arguments), is_hasty)
    try:
        call.read()
    except ClosesOverTracer:
        return function(callables, arguments, *donated)
    return _results(call, donated)


def _results(call: "_Call", donated: tuple = ()) -> Any:
    """What a program for calls like this gives."""
    program = _program_of(call)
    out = program(call, donated)
    if call.reading.is_known:
        _remember(program, call)
    return out


def lean_first(function: Callable, callables: Any, arguments: Any) -> Any:
    """`compiled`, of a function that can leave out what is seldom needed.

    Args:
        function: (is_lean, callables, arguments) -> results; if it is lean, with a flag
            that they are incomplete.
    """
    if is_eager_on_cpu((callables, arguments)):
        call = _Call(bound(function, True), (callables, arguments))
        with contextlib.suppress(ClosesOverTracer):
            call.read()
            if call.shape not in _incomplete:
                results, is_incomplete = _results(call)
                if not is_incomplete:
                    return results
                _note_incomplete(call)
    return compiled(bound(function, False), callables, arguments)


def _note_incomplete(call: "_Call") -> None:
    """Let calls like this have the whole program at once."""
    with _lock:
        _incomplete[call.shape] = None
        _make_latest(_incomplete, call.shape)


@functools.cache
def bound(function: Callable, *values: Hashable) -> Callable:
    """A function with its first arguments given: one object for equal values.

    `compiled` knows the functions of this library by their identity.
    """
    return functools.partial(function, *values)


class Prepared(NamedTuple):
    """A compiled program that any thread may call."""

    results: PyTree  # shapes and dtypes
    program: Callable  # of operands
    inputs: Callable[[PyTree], list]  # of the arguments
    values: list

    def __call__(self, arguments: PyTree) -> Any:
        """The results for arguments like those that it was made for."""
        return self.program(self.inputs(arguments), self.values, ())


def prepared(
    function: Callable, callables: Any, arguments: Any, is_hasty: bool = False
) -> Prepared:
    """`compiled`, but for the call: for many arguments of the same shapes.

    Args:
        is_hasty: compile in half the time what then takes twice as long, on CPUs.
    """
    call = _Call(function, (callables, arguments), is_hasty)
    call.read()
    program = _program_of(call)
    executable = program.compiled(call)
    if call.reading.is_known:
        _remember(program, call)

    def inputs(arguments):
        leaves = jax.tree.leaves((callables, arguments))
        return [_new(x) for x, d in zip(leaves, call.is_input, strict=True) if d]

    values = list(map(_new, call.reading.values))
    return Prepared(executable.out_info, executable, inputs, values)


def is_eager_on_cpu(tree: Any) -> bool:
    """Whether a program of these arrays runs now, and on the one CPU device that JAX
    chooses by itself."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, Tracer) for leaf in leaves) or jax.config.jax_disable_jit:
        return False
    if _trace_state() != _no_trace() or _platform_of(leaves) != "cpu":
        return False
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    default = _devices_by_default(jax.config.jax_default_device) if arrays else None
    return all(x.sharding.device_set == default and not is_extended(x) for x in arrays)


@functools.lru_cache(maxsize=64)
def _devices_by_default(setting: Any) -> Any:
    """The devices of an array that is made under this setting of JAX."""
    return jnp.zeros(()).sharding.device_set


def _program_of(call: "_Call") -> "_Program":
    """That of calls like this, or a new one."""
    with _lock:
        program = _programs.get(call.key(_static.get(call.shape, frozenset())))
    return _Program(call) if program is None else program


def _remember(program: "_Program", call: "_Call") -> None:
    """Keep a program for calls like this."""
    with _lock:
        static = _static.get(call.shape, frozenset()) | program.static
        key = call.key(static)
        if program.key != key:  # new, or traced again with more numbers in it
            _programs.pop(program.key, None)
            program.key, _programs[key], _static[call.shape] = key, program, static
        for cache, used in ((_programs, key), (_static, call.shape)):
            _make_latest(cache, used)


def _make_latest(cache: OrderedDict, key: Hashable) -> None:
    """Of what a cache has too much, what was not used for longest goes."""
    cache.move_to_end(key)
    while len(cache) > CACHE_SIZE:
        cache.popitem(last=False)


class _Call:
    """A function and its arguments, taken apart."""

    def __init__(self, function: Callable, tree: Any, is_hasty: bool = False):
        self.function, self.tree = function, tree
        self.is_hasty = is_hasty or always_in_haste
        self.leaves, self.structure = jax.tree.flatten(tree)
        self.is_input = [isinstance(leaf, _INPUTS) for leaf in self.leaves]

    @property
    def inputs(self) -> list:
        return [_new(x) for x, d in zip(self.leaves, self.is_input, strict=True) if d]

    def read(self) -> None:
        """What of it is part of the program."""
        self.reading = Reading()
        pairs = list(zip(self.leaves, self.is_input, strict=True))
        try:
            self.parts = [_INPUT if d else self.reading(x) for x, d in pairs]
            tree = _structure(self.reading, self.structure, self.tree)
        except RecursionError:  # a long chain of objects
            self.reading, tree = Reading(), None
            self.reading.is_known = False
            self.parts = [_INPUT if d else Part("unknown") for _, d in pairs]
        keys = tuple(part.key for part in self.parts)
        setting = self.is_hasty, jax.config.jax_enable_x64
        self.shape = self.function, setting, tree, keys

    def key(self, static: frozenset[int]) -> Hashable:
        """The program of all calls like this, with some values as they are."""
        values = self.reading.values
        if not self.reading.is_movable:
            static = frozenset(range(len(values)))
        return self.shape, tuple((i, _exactly(values[i])) for i in sorted(static))


_INPUTS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
_INPUT = Part("input")


def _is_on_one_device(tree: Any) -> bool:
    arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    return all(len(x.sharding.device_set) == 1 for x in arrays)


def _platform_of(tree: Any) -> str | None:
    """Where a program with these operands runs, if all say the same."""
    default = jax.config.jax_default_device or jax.default_backend()
    arrays = (x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    devices = {d.platform for x in arrays for d in x.sharding.device_set}
    platforms = devices | {getattr(default, "platform", default)}
    return platforms.pop() if len(platforms) == 1 else None


def _new(value: Any) -> Any:
    """The same numbers in an array that JAX has not seen.

    It remembers how it converted one, while a trace of somebody has it, also where x64
    is another later.
    """
    return value.view() if isinstance(value, np.ndarray) else value


def _exactly(value: Any) -> Hashable:
    return repr(value) if isinstance(value, (float, complex)) else content(value)


def _structure(reading: Reading, structure: Any, tree: Any) -> Hashable:
    """What a pytree holds besides its leaves.

    A structure that holds nothing but types and names describes itself.
    """
    try:
        plain = _plain_structures.get(structure)
    except TypeError:  # not hashable
        return _described(reading, tree)[0]
    if plain is not None:
        return plain
    key, is_plain = _described(reading, tree)
    if not is_plain:
        return key
    while len(_plain_structures) >= CACHE_SIZE:
        del _plain_structures[next(iter(_plain_structures))]
    _plain_structures[structure] = structure
    return structure


def _described(reading: Reading, node: Any) -> tuple[Hashable, bool]:
    """A key of a pytree without its leaves, and whether it is but types and names."""
    if jax.tree_util.all_leaves([node]):
        return None, True
    children, static = jax.tree_util.default_registry.flatten_one_level(node)
    found = [_described(reading, child) for child in children]
    keys = tuple(key for key, _ in found)
    is_plain = _is_plain(static) and all(plain for _, plain in found)
    return (type(node), reading.by_value(static), keys), is_plain


def _is_plain(static) -> bool:
    """Whether the static part of a pytree node is only types and names.

    Equal numbers may differ in type, functions in what they close over.
    """
    if static is None or isinstance(static, str):
        return True
    if isinstance(static, type):
        return is_pure(static.__module__)
    if type(static).__module__.startswith("equinox."):  # its marks
        return type(static).__eq__ is object.__eq__
    return isinstance(static, (tuple, list)) and all(map(_is_plain, static))


class _Program:
    """A jitted function of the inputs among some leaves, and of the values in others.

    Args:
        call: like all that it is to be used for.
    """

    def __init__(self, call: _Call):
        self.key: Hashable = None
        self.static: frozenset[int] = (
            frozenset()
        )  # places of values that are part of it
        self._alive = call.reading.alive
        self._current = threading.local()

        def program(inputs, values, donated):
            return self._traced(self._current.call, inputs, values, donated)

        named: Any = call.function
        while isinstance(named, functools.partial):
            named = named.func
        program.__name__ = program.__qualname__ = named.__name__.lstrip("_")
        self._inner = jax.jit(program)
        options = _compiler_options(call.is_hasty)
        outermost = {"donate_argnums": 2, "compiler_options": options}
        self._plain = jax.jit(lambda *args: program(*args), **outermost)
        self._in_one_function = jax.jit(program, **outermost)
        self._bears_it = True  # the compiler, as far as is known
        self._ahead: dict[Hashable, Any] = {}  # executables by shapes and types

    def compiled(self, call: _Call) -> Any:
        """The executable for operands like those of a call."""
        operands = call.inputs, list(map(_new, call.reading.values)), ()
        key = tuple(map(jax.typeof, jax.tree.leaves(operands)))
        if key in self._ahead:
            return self._ahead[key]
        self._current.call = call
        try:
            self._ahead[key] = self._compiled(operands)
        finally:
            del self._current.call
        return self._ahead[key]

    def _compiled(self, operands) -> Any:
        if self._bears_it and _is_on_one_device(operands):
            with program_of_ours(_platform_of(operands)) as ours:
                lowered = self._in_one_function.lower(*operands)
                try:
                    return lowered.compile()
                except jax.errors.JaxRuntimeError:
                    if not ours.has_one:
                        raise
            self._bears_it = False
        return self._plain.lower(*operands).compile()

    def __call__(self, call: _Call, donated: tuple) -> Any:
        self._current.call = call
        operands = call.inputs, list(map(_new, call.reading.values)), donated
        try:
            if _trace_state() != _no_trace():
                return self._inner(*operands)
            if not (self._bears_it and _is_on_one_device(operands)):
                return self._plain(*operands)
            with program_of_ours(_platform_of(operands)) as ours:
                try:
                    return self._in_one_function(*operands)
                except jax.errors.JaxRuntimeError:
                    if not ours.has_one:  # or it ran before
                        raise
            self._bears_it = False
            return self._plain(*operands)
        finally:
            del self._current.call

    def _traced(self, call: _Call, inputs: list, values: list, donated: tuple) -> Any:
        """The function, with as many values as inputs as the user's functions bear.

        Where they fail with what they bore at first, or keep a tracer, all values are
        numbers. A function that does not bear copies of its objects is called itself.
        """
        before, everything = call.reading.snapshot(), frozenset(range(len(values)))
        known = self.static | _static.get(call.shape, frozenset())
        copied = dict.fromkeys((known, everything)) if call.reading.is_movable else ()
        ways = [*((static, True) for static in copied), (everything, False)]
        for static, is_copied in ways:
            held = Held(call.reading.values, values, static, call.reading.is_plain)
            given = iter(inputs)
            leaves = [
                next(given)
                if part is _INPUT
                else opened(leaf, part, held)
                if is_copied
                else leaf
                for leaf, part in zip(call.leaves, call.parts, strict=True)
            ]
            arguments = jax.tree.unflatten(call.structure, leaves)
            try:
                out = call.function(*arguments, *donated)
            except Exception:
                before.take_back_tracers()
                if not is_copied:
                    raise
                continue
            if not before.take_back_tracers() or static == everything:
                break
        before.note_writes()
        self.static |= held.static
        return out


def _trace_state():
    return get_opaque_trace_state(convention="flax")


@functools.cache
def _no_trace():
    """The state in which nothing is traced, as a new thread has it."""
    found: list = []
    thread = threading.Thread(target=lambda: found.append(_trace_state()))
    thread.start()
    thread.join()
    return found[0]


@functools.cache
def _compiler_options(is_hasty: bool = False):
    """The first of `COMPILER_OPTIONS` that this release of jax knows."""
    for options in COMPILER_OPTIONS:
        options = options | (IN_HASTE if is_hasty else {})
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        return options
    return None
