"""What functions and other things are made of, and how to make them of other parts."""

import functools
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfit._programs.names import LOOKUPS, PURE, package_of, passed_on_in
from jaxfit._programs.places import Place, without_counters

CONSTANTS = {type(None), bool, int, str, bytes, range, type(...), type(NotImplemented)}


class Child(NamedTuple):
    """Something inside another thing, and where it can be replaced."""

    value: Any
    place: Place | None = None


class Split(NamedTuple):
    """A thing as what is known of it, its children, and how to make it of others.

    What can be rebuilt has `make`, or `copy` and `replace` if it may hold itself. In
    anything else the numbers count by value.
    """

    head: Hashable
    children: Sequence[Child] = ()
    make: Callable[[list], Any] | None = None  # from all children
    copy: Callable[[dict, dict], Any] | None = None
    """(puts by index, made) -> a copy with room for the children that change."""
    replace: Callable[[Any, dict[int, Any]], None] | None = None  # children of a copy
    always: bool = False  # also with the same children

    def remade(self, thing: Any, puts: dict, values: Sequence, made: dict) -> Any:
        """The thing with some children made of other values.

        Args:
            puts: (values, made) -> the child, by its place.
            made: what was made already, by the identity of what it stands for.
        """
        if self.copy is not None and self.replace is not None:
            made[id(thing)] = twin = self.copy(puts, made)
            self.replace(twin, {i: put(values, made) for i, put in puts.items()})
            return twin
        assert self.make is not None
        children = [child.value for child in self.children]
        for place, put in puts.items():
            children[place] = put(values, made)
        return self.make(children)


class Wrapper:
    """A function of this library around one of the user's, read by what it says."""

    def split(self) -> Split:
        """What it is made of."""
        raise NotImplementedError


class ModuleNames(NamedTuple):
    """A module as far as some code may name its attributes."""

    module: types.ModuleType
    names: tuple[str, ...]


def split_tuple(value: tuple) -> Split:
    kind = type(value)
    items, extras = [Child(item) for item in value], attributes(value)
    if extras:
        return Split(kind, [*items, Child(extras)])
    is_python = kind.__new__ is tuple.__new__ or is_function(kind.__new__)
    make = functools.partial(tuple.__new__, kind) if is_python else kind
    return Split(kind, items, make)


def split_list(value: list) -> Split:
    def replace(copy: list, changed: dict) -> None:
        for index, item in changed.items():
            copy[index] = item

    items = [Child(item) for item in value]
    return Split(list, items, None, lambda *_: list(value), replace)


def split_dict(value: dict, keys: Hashable) -> Split:
    """The entries of a dictionary.

    Args:
        keys: what its keys are.
    """
    kind, names = type(value), tuple(value)

    def replace(copy: dict, changed: dict) -> None:
        copy.update({names[index]: item for index, item in changed.items()})

    children = [Child(value[name], Place("item", value, name)) for name in names]
    return Split((kind, keys), children, None, lambda *_: kind(value), replace)


def split_method(method: types.MethodType) -> Split:
    children = [Child(method.__func__), Child(method.__self__)]
    return Split("method", children, lambda parts: types.MethodType(*parts))


def split_partial(partial: functools.partial) -> Split:
    """`functools.partial`, and JAX's, which is one."""
    kind = type(partial)

    def make(parts: list) -> Any:
        function, arguments, keywords, extras = parts
        twin = functools.partial.__new__(kind, function, *arguments, **keywords)
        vars(twin).update(extras)
        return twin

    held = partial.func, partial.args, partial.keywords, vars(partial)
    return Split(kind, [Child(part) for part in held], make)


def split_function(
    function: types.FunctionType, names: Sequence[str], key: Hashable
) -> Split:
    """What a function closes over, the globals that its code names, and the rest.

    Args:
        names: of the globals that count.
        key: of its code.
    """
    code, space = function.__code__, function.__globals__
    closure = function.__closure__ or ()
    filled = [k for k, cell in enumerate(closure) if not is_empty(cell)]
    named = _named(space, names)
    passed = {
        n: named.pop(n)
        for n in passed_on_in(code).intersection(named)
        if isinstance(named[n], types.ModuleType)
        and package_of(named[n].__name__) is None
    }
    parts = _FunctionParts(function, filled, _seen_by(names, named) | passed)
    head = key, tuple(filled), tuple(parts.named)
    if "globals" in names and "globals" not in space:
        return Split(head, parts.children)  # where it writes, nobody could see it
    return Split(head, parts.children, None, parts.copy, parts.replace)


class _FunctionParts(NamedTuple):
    """A function as what it holds itself, its cells, and globals, in this order."""

    function: Any  # in Python
    filled: list[int]  # places in its closure
    named: dict[str, Any]  # globals

    HELD = "__defaults__", "__kwdefaults__", "__dict__"

    @property
    def children(self) -> list[Child]:
        """All parts."""
        function, space = self.function, self.function.__globals__
        cells = [(function.__closure__ or ())[k] for k in self.filled]
        return [
            Child(function.__defaults__),
            Child(function.__kwdefaults__),
            Child(vars(function) or None),
            *(Child(cell.cell_contents, Place("cell", cell)) for cell in cells),
            *(Child(v, Place("item", space, n)) for n, v in self.named.items()),
        ]

    @property
    def first_global(self) -> int:
        """The place among the parts."""
        return len(self.HELD) + len(self.filled)

    def copy(self, changed: dict, made: dict) -> types.FunctionType:
        """Functions that share a cell, or globals, share the copy of it."""
        function = self.function
        closure: tuple = function.__closure__ or ()
        fresh = {
            k: made.setdefault(id(closure[k]), types.CellType())
            for index, k in enumerate(self.filled, len(self.HELD))
            if index in changed
        }
        space = function.__globals__
        if any(index >= self.first_global for index in changed):
            space = made.setdefault(id(space), dict(space))
        twin = types.FunctionType(
            function.__code__,
            space,
            function.__name__,
            function.__defaults__,
            tuple(fresh.get(k, cell) for k, cell in enumerate(closure)) or None,
        )
        twin.__kwdefaults__ = function.__kwdefaults__
        twin.__qualname__ = function.__qualname__
        vars(twin).update(vars(function))
        return twin

    def replace(self, twin: types.FunctionType, changed: dict) -> None:
        """Other parts in a copy."""
        names, cells = [*self.named], twin.__closure__ or ()
        for index, value in changed.items():
            if index >= self.first_global:
                twin.__globals__[names[index - self.first_global]] = value
            elif index >= len(self.HELD):
                cell: Any = cells[self.filled[index - len(self.HELD)]]
                cell.cell_contents = value
            else:
                setattr(twin, self.HELD[index], value)


def _named(space: dict, names: Sequence[str]) -> dict[str, Any]:
    """What names mean among globals."""
    values = {name: space[name] for name in names if name in space}
    if "globals" in names and "globals" not in space:
        values |= {n: v for n, v in space.items() if n not in values and _is_data(v)}
    return values


def _seen_by(names: Sequence[str], space: Mapping[str, Any]) -> dict[str, Any]:
    """Values, of which modules count as far as some code may name their attributes."""
    return {
        name: ModuleNames(value, tuple(names))
        if isinstance(value, types.ModuleType)
        else value
        for name, value in space.items()
    }


def split_module(view: ModuleNames) -> Split:
    """The attributes of a module that some code may name."""
    module, names = view
    inside = vars(module)
    if package_of(module.__name__) in PURE:
        changing = {n: inside[n] for n in names if _can_change(inside.get(n))}
        children = [Child(value) for value in _seen_by(names, changing).values()]
        return Split((module.__name__, tuple(changing)), children)
    lookup = LOOKUPS.intersection(names)
    chosen = {n: v for n, v in inside.items() if n in names or (lookup and _is_data(v))}
    chosen = _seen_by(names, chosen)

    def copy(*_) -> types.ModuleType:
        twin = types.ModuleType(module.__name__)
        vars(twin).update(inside)
        return twin

    def replace(twin: types.ModuleType, changed: dict) -> None:
        vars(twin).update({[*chosen][i]: item for i, item in changed.items()})

    children = [Child(value, Place("item", inside, n)) for n, value in chosen.items()]
    return Split((module.__name__, tuple(chosen)), children, None, copy, replace)


def split_object(value: Any) -> Split:
    """The attributes of an object of a class in Python."""
    kind, space, slots = type(value), attributes(value) or {}, _slots(value)
    entries = without_counters(space)
    names = [*slots, *entries]

    def copy(*_) -> Any:
        twin = object.__new__(kind)
        replace(twin, dict(enumerate(slots.values())))
        if space:
            vars(twin).update(space)
        return twin

    def replace(twin: Any, changed: dict) -> None:
        for index, item in changed.items():
            if index < len(slots):
                object.__setattr__(twin, names[index], item)
            else:  # past properties and descriptors
                vars(twin)[names[index]] = item

    children = [
        *(Child(item, Place("attribute", value, n)) for n, item in slots.items()),
        *(Child(item, Place("item", space, n)) for n, item in entries.items()),
    ]
    return Split(("object", tuple(names)), children, None, copy, replace)


def split_class(value: type) -> Split:
    entries = {k: v for k, v in vars(value).items() if not _is_machinery(k, v)}
    children = [Child(base) for base in (type(value), *value.__bases__)]
    for name, item in entries.items():
        if isinstance(item, property):
            children += map(Child, (item.fget, item.fset, item.fdel))
        elif isinstance(item, (staticmethod, classmethod)):
            children.append(Child(item.__func__))
        elif isinstance(item, functools.cached_property):
            children.append(Child(item.func))
        elif hasattr(type(item), "__get__"):
            children.append(Child(item))
        else:
            children.append(Child(item, Place("attribute", value, name)))
    return Split((len(value.__bases__), tuple(entries)), children)


# What is named, and where it comes from


def is_empty(cell: types.CellType) -> bool:
    """Whether nothing is in a cell, of a name that was not given a value yet."""
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def attributes(value: Any) -> dict | None:
    """The dictionary in which an object of a user's class keeps its attributes."""
    if isinstance(value, (type, types.FunctionType, types.ModuleType)):
        return None
    try:
        space = object.__getattribute__(value, "__dict__")
    except Exception:  # of a class in C, or a stand-in for something else
        return None
    return space if type(space) is dict else None


def _is_data(value: Any) -> bool:
    """Whether something is made of numbers and text."""
    return isinstance(value, _DATA)


_DATA = (*CONSTANTS - {type(None)}, float, complex, np.ndarray, np.generic, jax.Array)
_DATA = (*_DATA, tuple, list, set, frozenset, Mapping)


def _can_change(value: Any) -> bool:
    """Whether an attribute of a pure package may give another result later."""
    if isinstance(value, types.ModuleType) or is_bound(value):
        return True
    return _is_data(value)


def is_function(value: Any) -> bool:
    """Whether it is a function in Python."""
    return isinstance(value, types.FunctionType)


def is_bound(value: Any) -> bool:
    """Whether it is a method of an object, a random generator for example."""
    owner = getattr(value, "__self__", None)
    return not isinstance(owner, (types.NoneType, types.ModuleType, type))


def _is_machinery(name: str, value: Any) -> bool:
    """Whether an entry of a class is Python's own bookkeeping."""
    if name.startswith("_abc_"):
        return True
    is_used = callable(value) or hasattr(type(value), "__get__")
    is_slot = isinstance(value, types.GetSetDescriptorType)
    return name.startswith("__") and (is_slot or not is_used)


def _slots(value: Any) -> dict[str, Any]:
    """What is in the slots of an object, by their names inside Python."""
    contents: dict[str, Any] = {}
    for cls in type(value).__mro__:
        for name, slot in vars(cls).items() if "__slots__" in vars(cls) else ():
            if isinstance(slot, types.MemberDescriptorType) and name not in contents:
                try:
                    contents[name] = slot.__get__(value)
                except AttributeError:  # empty
                    continue
    return contents
