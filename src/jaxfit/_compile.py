"""When two functions are the same function, and what is compiled once.

`jax.jit` knows a function by its identity, so that a lambda made anew on every call
would compile on every call. `compiled` knows it by all that its result can depend on:
code, defaults, what it closes over, and the globals that it names. Plain values, NumPy
arrays and containers count by value, since the latter can change in place; JAX arrays,
library functions and opaque objects count by identity, and are kept alive while their
program is. What a function itself writes while it is traced, such as a counter of its
traces, is a side effect and does not count.
"""

import functools
import hashlib
import sys
import sysconfig
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

CACHE_SIZE = 128
WRITTEN_SIZE = 4096

# One LLVM module compiles a fit in three quarters of the time that several in parallel
# take, and XLA's older emitters halve it; the program runs as fast. Releases of jax
# that have no such choice any more refuse it.
ONE_MODULE = {"xla_cpu_parallel_codegen_split_count": 1}
COMPILER_OPTIONS = {**ONE_MODULE, "xla_cpu_use_fusion_emitters": False}, ONE_MODULE

_programs: OrderedDict[Hashable, Callable] = OrderedDict()
_plain_structures: dict[Hashable, Hashable] = {}
_lock = threading.Lock()
_written: dict[Hashable, Any] = {}  # places written by tracing, and their owners


class Static(eqx.Module):
    """A value among the arguments of `compiled` that is part of the program."""

    value: Any = eqx.field(static=True)


def compiled(function: Callable, callables: Any, arguments: Any, *donated: Any) -> Any:
    """`function(callables, arguments)`, compiled once for all that are alike.

    Args:
        function: a function of this library; its identity is enough.
        callables: a pytree of the user's functions and modules. Arrays in it are
            inputs of the program.
        arguments: a pytree; what is no array or number in it is part of the program.
        donated: further arguments of the function, whose memory its results may take.
    """
    leaves, structure = jax.tree.flatten((callables, arguments))
    is_input = [isinstance(leaf, _INPUTS) for leaf in leaves]
    static = [None if d else leaf for leaf, d in zip(leaves, is_input, strict=True)]

    def describe():
        fingerprint = _Fingerprint()
        tree = _plain_structures.get(structure) if _is_hashable(structure) else None
        tree = tree or fingerprint.structure(structure, (callables, arguments))
        return fingerprint, (function, tree, *map(fingerprint, static))

    try:
        fingerprint, key = describe()
    except _ClosesOverTracer:
        return function(callables, arguments, *donated)
    with _lock:
        program = _programs.get(key)
        if program is None:
            program = _Program(function, structure, static, is_input)
            _remember(key, program, fingerprint)
        _programs.move_to_end(key)
    traces = program.traces
    out = program(
        [leaf for leaf, dynamic in zip(leaves, is_input, strict=True) if dynamic],
        donated,
    )
    if program.traces > traces:
        with _lock:
            if fingerprint.written_since(describe()[0]):
                _remember(describe()[1], program, fingerprint)
    return out


def _is_hashable(structure) -> bool:
    try:
        hash(structure)
    except TypeError:
        return False
    return True


def _remember(key, program, fingerprint):
    program.kept_alive.extend(fingerprint.identified)
    _programs[key] = program
    while len(_programs) > CACHE_SIZE:
        _programs.popitem(last=False)


_INPUTS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class _Program:
    """A jitted function of the inputs among some leaves."""

    def __init__(self, function, structure, static, is_input):
        def call(inputs, donated):
            self.traces += 1
            inputs = iter(inputs)
            leaves = [
                next(inputs) if d else s for s, d in zip(static, is_input, strict=True)
            ]
            return function(*jax.tree.unflatten(structure, leaves), *donated)

        named: Any = getattr(function, "func", function)  # of a partial
        call.__name__ = call.__qualname__ = named.__name__.lstrip("_")
        self.traces = 0
        self.kept_alive: list = []
        self._inner = jax.jit(call)
        self._outermost = jax.jit(
            call, donate_argnums=1, compiler_options=_compiler_options()
        )

    def __call__(self, inputs, donated):
        is_outermost = _trace_state() == _no_trace()
        return (self._outermost if is_outermost else self._inner)(inputs, donated)


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
def _compiler_options():
    """The first of `COMPILER_OPTIONS` that this release of jax knows."""
    for options in COMPILER_OPTIONS:
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        return options
    return None


class _ClosesOverTracer(Exception):
    """The function belongs to a trace that is going on: nothing may be kept of it."""


class _Fingerprint:
    """Hashable descriptions; equal ones are interchangeable."""

    def __init__(self):
        self.identified: list = []  # kept alive, so that no identity is used twice
        self.places: dict[Hashable, tuple[Hashable, Any]] = {}  # that can be written
        self.holds_values = False
        self._visited: dict[int, int] = {}

    def written_since(self, later: "_Fingerprint") -> bool:
        """Note the places whose content is another now; they no longer count."""
        changed = {
            place: owner
            for place, (content, owner) in self.places.items()
            if later.places.get(place, (None,))[0] != content
        }
        _written.update(changed)
        while len(_written) > WRITTEN_SIZE:
            del _written[next(iter(_written))]
        return bool(changed)

    def _place(self, place: Hashable, owner: Any, value: Any) -> Hashable:
        """The content of something that can be rebound or change in place."""
        if place in _written:
            return "written", place
        content = self(value)
        self.places[place] = content, owner
        return content

    def __call__(self, value: Any) -> Hashable:
        if isinstance(value, Tracer):
            raise _ClosesOverTracer
        if value is None or isinstance(value, (bool, int, str, bytes)):
            return type(value), value
        if isinstance(value, (float, complex)):
            return type(value), repr(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(value)
        if isinstance(value, jax.Array):
            return self._identity(value)
        if id(value) in self._visited:  # again, or within itself
            return "visited", self._visited[id(value)]
        self._visited[id(value)] = len(self._visited)
        self.identified.append(value)
        return self._compound(value)

    def structure(self, structure: Any, tree: Any) -> Hashable:
        """What a pytree holds besides its leaves.

        A structure that holds nothing but types and names describes itself.
        """
        description = self.tree(tree)
        if not self.holds_values:
            while len(_plain_structures) >= CACHE_SIZE:
                del _plain_structures[next(iter(_plain_structures))]
            _plain_structures[structure] = structure
            return structure
        return description

    def tree(self, node: Any) -> Hashable:
        if jax.tree_util.all_leaves([node]):
            return None
        children, static = jax.tree_util.default_registry.flatten_one_level(node)
        self.holds_values |= not _is_plain(static)
        children = tuple(self.tree(child) for child in children)
        return type(node), self(static), children

    def _identity(self, value):
        self.identified.append(value)
        return "identity", id(value)

    def _array(self, value):
        value = np.asarray(value)
        if value.dtype.hasobject:
            return "objects", value.shape, self(value.tolist())
        digest = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16)
        return "array", value.shape, value.dtype.str, digest.digest()

    def _compound(self, value):
        if isinstance(value, tuple):
            return type(value), tuple(self(item) for item in value)
        if isinstance(value, frozenset):
            return type(value), frozenset(self(item) for item in value)
        if isinstance(value, list):
            return type(value), self._place(id(value), value, tuple(value))
        if isinstance(value, dict):
            return type(value), self._place(id(value), value, tuple(value.items()))
        if isinstance(value, set):
            return type(value), self._place(id(value), value, frozenset(value))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return "method", self(value.__func__), self(value.__self__)
        if isinstance(value, functools.partial):
            parts = value.func, value.args, value.keywords
            return type(value), tuple(self(part) for part in parts)
        if isinstance(value, types.CellType):
            try:
                return "cell", self._place(id(value), value, value.cell_contents)
            except ValueError:
                return "cell", "empty"
        if isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
            return self._identity(value)
        if isinstance(value, type):
            return self._class(value)
        if hasattr(value, "__wrapped__"):  # a jitted function, say
            return self._identity(value), self(value.__wrapped__)
        plain = isinstance(value, types.SimpleNamespace)
        if _is_library(type(value).__module__) and not plain:
            return self._identity(value)
        content = self._content(value)
        return self._identity(value), self(type(value)), content

    def _function(self, value):
        parts = value.__defaults__, value.__kwdefaults__, value.__closure__
        parts = tuple(self(part) for part in parts)
        if _is_library(value.__module__):
            return self._identity(value), parts
        named = tuple(self._named(value, n) for n in _names(value.__code__))
        where = self._identity(value.__globals__)
        return value.__code__, where, parts, named, self._content(value)

    def _named(self, function, name):
        """What a name in a function's code means as a global, or in a user's module."""
        space = function.__globals__
        if name not in space:
            return name, None
        value = space[name]
        if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
            inside = vars(value)
            names = [n for n in _names(function.__code__) if n in inside]
            inside = tuple(
                (n, self._place((id(value), n), value, inside[n])) for n in names
            )
            return name, id(value), inside
        return name, self._place((id(space), name), space, value)

    def _class(self, value):
        if _is_library(value.__module__):
            return self._identity(value)
        own = {k: v for k, v in vars(value).items() if not k.startswith("__")}
        bases = tuple(self(base) for base in value.__bases__)
        return self._identity(value), self(tuple(own.items())), bases

    def _content(self, value):
        """The attributes of an object, which may have been set since."""
        slots = (
            name
            for cls in type(value).__mro__
            for name in _slots(cls)
            if hasattr(value, name)
        )
        own = {name: getattr(value, name) for name in slots}
        own.update(getattr(value, "__dict__", {}))
        return tuple(
            (name, self._place((id(value), name), value, item))
            for name, item in own.items()
        )


def _is_plain(static) -> bool:
    """Whether the static part of a pytree node is only types and names.

    Equal numbers may differ in type, functions in what they close over.
    """
    if static is None or isinstance(static, str):
        return True
    if isinstance(static, type):
        return _is_library(static.__module__)
    if type(static).__module__.startswith("equinox."):  # its marks
        return type(static).__eq__ is object.__eq__
    return isinstance(static, (tuple, list)) and all(map(_is_plain, static))


def _slots(cls):
    slots = vars(cls).get("__slots__", ())
    slots = (slots,) if isinstance(slots, str) else slots
    return [name for name in slots if name not in ("__dict__", "__weakref__")]


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """All names that a code object and those within it look up."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_names(constant)))
    return tuple(names)


@functools.lru_cache(maxsize=4096)
def _is_library(module: str | None) -> bool:
    """Whether a module is installed, or this library, rather than being worked on."""
    if module is None:
        return False
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package == __name__.partition(".")[0]:
        return module != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return False
    folders = (sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    return file.startswith(tuple(folders))
