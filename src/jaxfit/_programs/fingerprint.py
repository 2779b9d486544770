"""What makes a function the same function, and which of its numbers are its inputs.

A function is read as far as its result can depend on it: code, defaults, what it closes
over, the globals that it names, the attributes of its objects. A reading gives

    a key     hashable; of two functions with equal keys and equal values one may stand
              for the other
    values    the arrays and floats within, which may become inputs of a program
    put       how to make the same function with other values in their places

What can change in place is described by what it holds now: containers, objects, and
what an installed library defines, as far as it can be pickled. What cannot be known (an
open file) makes a key that equals no other. What is logged is out: see `places.py`.
"""

import builtins
import enum
import functools
import importlib.util
import io
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfit._programs.content import (
    can_be_copied,
    content,
    has_many_numbers,
    is_plain_object,
    plain_content,
    table_of,
)
from jaxfit._programs.names import (
    IDENTITY,
    OUTSIDE,
    READERS,
    can_tell,
    imports_in,
    is_pure,
    names_in,
    package_of,
    readable_code,
)
from jaxfit._programs.places import Place, Snapshot, noted
from jaxfit._programs.splits import (
    CONSTANTS,
    Child,
    ModuleNames,
    Split,
    Wrapper,
    attributes,
    is_bound,
    split_class,
    split_dict,
    split_function,
    split_list,
    split_method,
    split_module,
    split_object,
    split_partial,
    split_tuple,
)

FLOATS, WHOLE = "efdFD", "?bBhHiIlLqQ"  # types of arrays that JAX takes
OPAQUE = type(threading.Lock()), type(threading.RLock())
DESCRIPTORS = types.MemberDescriptorType, types.GetSetDescriptorType


class ClosesOverTracer(Exception):
    """The function belongs to a trace that is going on: nothing may be kept of it."""


class Part(NamedTuple):
    """What was read of one thing."""

    key: Hashable
    put: Callable[[Sequence, dict], Any] | None = None
    """(values, made) -> the same with other values; None: it holds none."""


class _Seen:
    """Something that was met before, and how to make it once it is known."""

    def __init__(self, number: int, value: Any):
        self.number, self.value = number, value
        self.put: Callable | None = None

    def again(self, values: Sequence, made: dict) -> Any:
        return self.value if self.put is None else self.put(values, made)


class Reading:
    """One reading of functions and other things.

    Args:
        lasting: for keys that mean the same in other processes: names in place of
            identities, and every number by value.
    """

    def __init__(self, lasting: bool = False):
        self.lasting = lasting
        self.is_known = True
        self.is_plain = bool(jax.config.jax_enable_x64)  # see `hoist.Held`
        self.is_movable = True  # nothing in it is known by its identity
        self.values: list[Any] = []
        self.alive: list[Any] = []  # so that no identity is used twice
        self._places: list[tuple[Place, Hashable]] = []
        self._is_reducing = False  # what is read is what an object keeps of itself
        self._states: set[str] = set()  # modules that were looked into
        self._has_module = False  # a value is one, whatever is asked of it
        self._names: set[str] = set()  # in functions
        self._fixed = lasting  # numbers count by value
        self._arrays: dict[int, int] = {}  # places in `values`
        self._seen: dict[Hashable, _Seen] = {}

    def __call__(self, value: Any) -> Part:
        kind = type(value)
        if kind in CONSTANTS:
            return Part((kind, repr(value) if kind is range else value))
        if kind is float or kind is complex:
            if self._fixed:
                return Part((kind, repr(value)))
            return self._value(value, kind)
        if isinstance(value, (np.ndarray, np.generic)):
            return self._numbers(value)
        if isinstance(value, Tracer):
            raise ClosesOverTracer
        if isinstance(value, jax.Array):
            return self._jax_array(value)
        is_view = kind is ModuleNames
        thing = (id(value.module), value.names) if is_view else id(value)
        where = thing, self._fixed
        if where in self._seen:
            seen = self._seen[where]
            return Part(("seen", seen.number), None if self._fixed else seen.again)
        seen = self._seen[where] = _Seen(len(self._seen), value)
        self.alive.append(value)
        if kind is list and (log := noted(Place("container", value), value)):
            self._places.append((Place("container", value), log))
            return Part(log)
        part = self._thing(value)
        seen.put = part.put
        return part

    def by_value(self, value: Any) -> Hashable:
        """The key of something of which all numbers count."""
        return self._by_value(None, value).key

    def snapshot(self) -> Snapshot:
        """What is now in the places that the function can write to."""
        return Snapshot([(place, key, place.content()) for place, key in self._places])

    # Numbers

    def _value(self, value: Any, *description: Hashable) -> Part:
        index = len(self.values)
        if len(description) > 1:  # an array, which may be met again
            index = self._arrays.setdefault(id(value), index)
        if index == len(self.values):
            self.values.append(value)
        return Part(("value", index, *description), lambda values, made: values[index])

    def _numbers(self, value: Any) -> Part:
        plain = isinstance(value, (np.generic, np.memmap)) or type(value) is np.ndarray
        if not plain:  # masks and units count
            return self._by_reduction(value)
        if value.dtype.hasobject:
            return self._by_value(("objects", value.shape), value.tolist())
        taken = FLOATS if isinstance(value, np.generic) else FLOATS + WHOLE
        is_taken = value.dtype.isnative and value.dtype.char in taken
        if self._fixed or not is_taken:
            return Part((type(value), *content(value)))
        return self._value(value, type(value), value.shape, value.dtype.str)

    def _jax_array(self, value: jax.Array) -> Part:
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if self.lasting:
            if is_key:
                value = jax.random.key_data(value)
            return Part(("array", *content(np.asarray(value))))
        if self._fixed or is_key:  # a key is no number, and stays what it is
            return Part(self._identity(value))
        return self._value(value, value.shape, str(value.dtype), value.weak_type)

    # Things

    def _entry(self, item: Any) -> Hashable:
        """The key of something by which another is looked up."""
        if type(item).__hash__ is object.__hash__:
            self.is_movable = False
        return self._by_value(None, item).key

    def _thing(self, value: Any) -> Part:
        if type(value) is types.FunctionType:
            return self._joined(value, self._split_function(value))
        if isinstance(value, enum.Enum):
            return self._by_value(value.name, (type(value), attributes(value)))
        if isinstance(value, weakref.ref):
            return self._by_value("weakref", weakref.ref.__call__(value))
        if isinstance(value, (*OPAQUE, *DESCRIPTORS)):
            return Part(self._identity(value))
        if type(value) is set or isinstance(value, frozenset):
            items = (self._entry(item) for item in value)
            # in their order, which is another one in another process
            ordered = frozenset(items) if self.lasting else tuple(items)
            return Part((type(value), ordered))
        if isinstance(value, types.MappingProxyType):
            return self._by_value("mapping", dict(value))
        if isinstance(value, types.UnionType):  # in annotations; it has no reduction
            return self._by_value("union", value.__args__)
        if isinstance(value, io.IOBase):
            is_open = not value.closed
            if is_open and value.readable():
                return Part(self._unknown())
            return Part((self._identity(value), is_open))
        if isinstance(value, type):
            key = self._identity(value)
            if package_of(value.__module__) is not None:
                return Part((key, self._state_of(value.__module__)))
            return self._joined(value, split_class(value), key)
        if isinstance(value, types.BuiltinFunctionType):
            if not is_bound(value):
                return Part(self._identity(value))
            return self._by_value(value.__name__, value.__self__)
        split = self._split(value)
        if split is None:
            return self._by_reduction(value)
        return self._joined(value, split)

    def _split(self, value: Any) -> Split | None:
        kind = type(value)
        if isinstance(value, Wrapper):
            return value.split()
        if (numbers := table_of(value)) is not None:
            return Split((kind, numbers))
        if isinstance(value, ModuleNames):
            return self._split_module(value)
        if isinstance(value, types.ModuleType):
            if package_of(value.__name__) in ("jax", "jaxlib", "numpy"):
                self._has_module = True  # as what is in it
                self._look_for_readers()
                return Split(self._identity(value))
            return self._split_module(ModuleNames(value, tuple(vars(value))))
        package = package_of(kind.__module__)
        if isinstance(value, tuple):
            return self._with_class(value, split_tuple(value))
        if kind is list:
            return split_list(value)
        if kind in (dict, OrderedDict):
            return split_dict(value, tuple(self._entry(key) for key in tuple(value)))
        if isinstance(value, types.MethodType):
            return split_method(value)
        if isinstance(value, functools.partial):
            return self._with_class(value, split_partial(value))
        if kind.__name__ == "PjitFunction":
            return self._split_jitted(value)
        if package is not None and "__wrapped__" in (attributes(value) or ()):
            if hasattr(value, "cache_clear"):
                self._places.append((Place("cache", value), None))  # of tracers only
            return Split(self._identity(value), [Child(vars(value))])
        if package in ("jax", "jaxlib"):
            return Split(self._identity(value))
        if not is_plain_object(value):
            return None
        if isinstance(value, eqx.Module) or package is None:
            split = self._with_class(value, split_object(value))
            return split._replace(copy=split.copy if can_be_copied(kind) else None)
        return None

    def _look_for_readers(self) -> None:
        """Whether a module that is held may be asked for what is outside."""
        if self._has_module and any(map(self._names.intersection, READERS.values())):
            self._unknown()

    def _with_class(self, value: Any, split: Split) -> Split:
        """An object with what its class is."""
        kind = type(value)
        if package_of(kind.__module__) is not None and not isinstance(
            value, eqx.Module
        ):
            return split
        return split._replace(head=(split.head, self._by_value(None, kind).key))

    def _split_jitted(self, value: Any) -> Split:
        """What a jitted function jits: its own traces would not see what changed."""
        wrapped = value.__wrapped__
        if is_pure(getattr(wrapped, "__module__", None)):
            return Split(self._identity(value))
        return Split("jitted", [Child(wrapped)], lambda parts: parts[0], always=True)

    def _split_function(self, function: types.FunctionType) -> Split:
        code, space = function.__code__, function.__globals__
        module = space.get("__name__")
        if package_of(module) is not None:  # its globals do not count, or as a whole
            self.is_plain &= is_pure(module) and not (
                package_of(module) in sys.stdlib_module_names and can_tell(code)
            )
            key = self._identity(function) if self.lasting else code
            return split_function(function, (), (key, self._state_of(module)))
        self.is_plain &= not can_tell(code)
        names = names_in(code)
        self._names.update(names)
        self._look_for_readers()
        self.is_movable &= not IDENTITY.intersection(names)
        if any(n in names and n not in space for n in OUTSIDE if hasattr(builtins, n)):
            self._unknown()
        key = readable_code(code) if self.lasting else code, self._imported(code, space)
        return split_function(function, names, key)

    def _imported(self, code: types.CodeType, space: dict) -> Hashable:
        """What code imports when it is called."""
        keys = []
        for name in imports_in(code):
            if name.startswith("."):
                name = importlib.util.resolve_name(name, space.get("__package__") or "")
            for module in {name.partition(".")[0], name}:
                if module in sys.modules:
                    view = ModuleNames(sys.modules[module], names_in(code))
                    keys.append(self._by_value(module, view).key)
                elif not is_pure(module):
                    self._unknown()
        return tuple(keys)

    def _state_of(self, name: Any) -> Hashable:
        """The plain data in a module of an installed package, and in what it imports
        from that package: its settings."""
        if is_pure(name) or name in self._states or name not in sys.modules:
            return name
        self._states.add(name)
        package, inside = package_of(name), tuple(vars(sys.modules[name]).items())
        settings = [
            (key, plain_content(value))
            for key, value in inside
            if not (key.startswith("__") or isinstance(value, types.ModuleType))
        ]
        others = [
            self._state_of(value.__name__)
            for _, value in inside
            if isinstance(value, types.ModuleType)
            and package_of(value.__name__) == package
        ]
        return name, tuple(one for one in settings if one[1] is not None), tuple(others)

    def _split_module(self, view: ModuleNames) -> Split:
        outside = READERS.get(view.module.__name__, set()).intersection(view.names)
        if outside:
            self._unknown()
            others = tuple(name for name in view.names if name not in outside)
            return split_module(ModuleNames(view.module, others))
        return split_module(view)

    def _joined(self, value: Any, split: Split, identity: Hashable = None) -> Part:
        """The parts of the children as one."""
        fixed_before = self._fixed
        can_be_made = split.make is not None or split.copy is not None
        self._fixed = fixed_before or not can_be_made or has_many_numbers(value, split)
        parts = [self._child(child) for child in split.children]
        self._fixed = fixed_before
        key = (split.head, identity, tuple(part.key for part in parts))
        container = value if isinstance(value, (list, dict)) else attributes(value)
        if container is not None:
            self._note(Place("container", container), key)
        changed = {i: part.put for i, part in enumerate(parts) if part.put is not None}
        if not changed and (self._fixed or not split.always):
            return Part(key)

        def put(values: Sequence, made: dict) -> Any:
            if id(value) not in made:
                made[id(value)] = split.remade(value, changed, values, made)
            return made[id(value)]

        return Part(key, put)

    def _child(self, child: Child) -> Part:
        """Something that may be written to; see `Snapshot.note_writes`."""
        value, place = child
        if place is None:
            return self(value)
        counter = noted(place, value)
        part = self(value) if counter is None else Part(counter)
        self._note(place, part.key)
        return part

    def _note(self, place: Place, key: Hashable) -> None:
        """A place that may be written to; an object's own state is no counter."""
        self._places.append((place, None if self._is_reducing else key))

    def _by_value(self, head: Hashable, value: Any) -> Part:
        """Something that cannot be rebuilt."""
        before, self._fixed = self._fixed, True
        part = self(value)
        self._fixed = before
        return Part((head, part.key))

    def _by_reduction(self, value: Any) -> Part:
        """What `pickle` would keep of an object."""
        is_container = isinstance(value, (list, dict, deque))
        containers = value if is_container else None, attributes(value)
        try:
            reduced = value.__reduce_ex__(4)
            if isinstance(reduced, str):
                return Part((type(value), reduced, self._identity(value)))
            make, arguments, *rest = reduced
            state, items, entries = (*rest, None, None, None)[:3]
            held = make, arguments, state, *map(_listed, (items, entries))
        except Exception:  # each class says in its own way that it cannot
            return Part(self._unknown())
        before, self._is_reducing = self._is_reducing, True
        part = self._by_value("reduced", held)
        self._is_reducing = before
        for container in containers:
            if container is not None:
                self._places.append((Place("container", container), None))
        return part

    def _identity(self, value: Any) -> Hashable:
        """The identity of what does not change, or is seen by what it holds besides."""
        if self.lasting:
            name = getattr(value, "__qualname__", getattr(value, "__name__", None))
            return getattr(value, "__module__", None), name, type(value).__qualname__
        self.alive.append(value)
        return "identity", id(value)

    def _unknown(self) -> Hashable:
        self.is_known = False
        return "unknown"


def _listed(items: Any) -> Any:
    return None if items is None else list(items)
