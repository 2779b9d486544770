"""A copy of a function whose NumPy makes arrays that a traced value can be a part of.

A function finds `np` among its globals. Its copy has the same code and other globals:
in them `np`, and what was imported from it, are replaced (see `creators`), and so are
the user's other functions that it names, closes over or calls as methods, by copies.
Arrays that are found there are known, and read-only. Lists, dictionaries and objects
are copied too: what a trace writes to them is lost, since it holds for that trace only.
What an installed package defines is left as it is.
"""

import builtins
import dis
import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxfit._numpy.creators import CREATORS, NUMPY
from jaxfit._numpy.traced import Traced, wrapped
from jaxfit._programs.names import names_in, package_of
from jaxfit._programs.splits import attributes, is_empty


class Remade:
    """A function that is made when it is called, of the values of that call."""

    def __init__(self, make: Callable[[], Callable]) -> None:
        self.make = make

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.make()(*args, **kwargs)


def copied(function: Callable) -> Callable:
    """The copy of a function, in a call of which its arrays belong to that call.

    Raises:
        WritesGlobals: if there is none that does the same.
    """
    return _Copies()(function)


class WritesGlobals(Exception):
    """A function writes to its globals, where others would look for it."""


class _Copies:
    """Copies of things, each made once."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._alive: list[Any] = []  # so that no identity is used twice
        self._named: set[tuple[int, tuple[str, ...]]] = set()

    def __call__(self, thing: Any) -> Any:
        """The copy of a thing, or the thing itself."""
        if id(thing) in _REPLACED:
            return _REPLACED[id(thing)]
        if id(thing) not in self._made:
            copy = self._kinds.get(type(thing), _Copies._object)
            self._keep(thing, copy(self, thing))
        return self._made[id(thing)]

    def _keep(self, thing: Any, copy: Any) -> Any:
        self._alive.append(thing)
        self._made[id(thing)] = copy
        return copy

    # Functions

    def _function(self, function: types.FunctionType) -> Callable:
        code, space = function.__code__, function.__globals__
        package = package_of(space.get("__name__"))
        if package is None and _writes_globals(code):
            raise WritesGlobals
        if package not in (None, "jaxfit") and not hasattr(function, "__wrapped__"):
            return function
        closure = function.__closure__ or ()
        cells = [self._cell(cell, package is None) for cell in closure]
        copy = types.FunctionType(
            code,
            self._space(space) if package is None else space,
            function.__name__,
            closure=tuple(cells),
        )
        self._keep(function, copy)
        for cell, own in zip(closure, cells, strict=True):
            if own is not cell and not is_empty(cell):
                own.cell_contents = self(cell.cell_contents)
        copy.__qualname__ = function.__qualname__
        copy.__defaults__ = self(function.__defaults__)
        copy.__kwdefaults__ = self(function.__kwdefaults__)
        vars(copy).update(self(vars(function)))
        if package is None:
            self._name(space, copy.__globals__, names_in(code))
        return copy

    def _cell(self, cell: types.CellType, is_users: bool) -> types.CellType:
        """Another cell, which is filled later; the same one if a package put no
        function of the user's into it."""
        if id(cell) in self._made:
            return self._made[id(cell)]
        is_other = is_users or (not is_empty(cell) and _is_called(cell.cell_contents))
        return self._keep(cell, types.CellType() if is_other else cell)

    def _space(self, space: dict) -> dict:
        """The globals of copies."""
        if id(space) in self._made:
            return self._made[id(space)]
        inside = {**vars(builtins), "__import__": _imported}
        return self._keep(space, {**space, "__builtins__": inside})

    def _name(self, space: dict, copy: dict, names: tuple[str, ...]) -> None:
        """Put copies where names are looked up, in the user's modules too."""
        if (id(space), names) in self._named:
            return
        self._named.add((id(space), names))
        for name in names:
            thing = space.get(name)
            if type(thing) is types.ModuleType and package_of(thing.__name__) is None:
                copy[name] = self._module(thing)
                self._name(vars(thing), vars(copy[name]), names)
            elif name in space:
                copy[name] = self(thing)

    def _module(self, module: types.ModuleType) -> types.ModuleType:
        if id(module) not in self._made:
            copy = self._keep(module, types.ModuleType(module.__name__))
            vars(copy).update(vars(module))
        return self._made[id(module)]

    def _method(self, method: types.MethodType) -> Callable:
        return types.MethodType(self(method.__func__), self(method.__self__))

    def _partial(self, partial: functools.partial) -> Callable:
        named = self(partial.keywords)
        return functools.partial(self(partial.func), *self(partial.args), **named)

    def _remade(self, remade: Remade) -> Callable:
        return Remade(lambda: _Copies()(remade.make()))

    # What they find

    def _array(self, array: np.ndarray) -> Any:
        known = wrapped(array)
        if type(known) is Traced:
            known._cell.lend()
        return known

    def _list(self, things: list) -> list:
        copy = self._keep(things, [])
        copy += self._all(things)
        return copy

    def _dict(self, things: dict) -> dict:
        copy = self._keep(things, {})
        copy.update(zip(things, self._all(things.values()), strict=True))
        return copy

    def _tuple(self, things: tuple) -> tuple:
        return tuple(self._all(things))

    def _set(self, things: set) -> set:
        return set(things)

    def _all(self, things: Iterable[Any]) -> Iterable[Any]:
        things = list(things)
        is_plain = _NUMBERS.issuperset(map(type, things))
        return things if is_plain else map(self, things)

    def _object(self, thing: Any) -> Any:
        """An object of a class with copies of the methods, below its own."""
        if not _has_methods(thing):
            return thing
        kind = type(thing)
        below = type(kind.__name__, (kind,), {})
        copy = self._keep(thing, object.__new__(below))
        for cls in reversed(kind.__mro__[:-1]):
            for name, item in vars(cls).items():
                if not name.startswith("__") or name == "__call__":
                    setattr(below, name, self._of_class(item))
        vars(copy).update(self(vars(thing)))
        return copy

    def _of_class(self, item: Any) -> Any:
        if isinstance(item, (staticmethod, classmethod)):
            return type(item)(self(item.__func__))
        if type(item) is property:
            return property(*map(self, (item.fget, item.fset, item.fdel)))
        return self(item)

    _kinds: dict[type, Callable] = {
        types.FunctionType: _function,
        types.MethodType: _method,
        functools.partial: _partial,
        Remade: _remade,
        np.ndarray: _array,
        list: _list,
        dict: _dict,
        tuple: _tuple,
        set: _set,
    }


_NUMBERS = {bool, int, float, complex, str, bytes, type(None), np.float64, np.int64}
_REPLACED: dict[int, Any] = {id(np): NUMPY} | {
    id(getattr(np, name)): creator for name, creator in CREATORS.items()
}


def _is_called(thing: Any) -> bool:
    """Whether it is a function of which there is a copy."""
    return callable(thing) and (type(thing) in _Copies._kinds or _has_methods(thing))


def _has_methods(thing: Any) -> bool:
    """Whether its class, and those that this is made of, are the user's, in Python."""
    if attributes(thing) is None or type(type(thing)) is not type:
        return False
    classes = type(thing).__mro__[:-1]
    names = {name for cls in classes for name in vars(cls)}
    is_users = all(package_of(cls.__module__) is None for cls in classes)
    own = {name for name in names if not name.startswith("__") or name == "__call__"}
    is_mark = not attributes(thing) and not own  # and is compared by `is`
    return is_users and not is_mark and names.isdisjoint(_LEFT_ALONE)


_LEFT_ALONE = {"__slots__", "__init_subclass__", "__getattribute__", "__del__"}


@functools.lru_cache(maxsize=1024)
def _writes_globals(code: types.CodeType) -> bool:
    """Whether a `global` of the code, or of one within, is written to."""
    steps = {step.opname for step in dis.get_instructions(code)}
    inside = (c for c in code.co_consts if isinstance(c, types.CodeType))
    is_written = not steps.isdisjoint(("STORE_GLOBAL", "DELETE_GLOBAL"))
    return is_written or "globals" in code.co_names or any(map(_writes_globals, inside))


def _imported(name: str, *place: Any, **named: Any) -> Any:
    """What `import` gives inside of a copy."""
    module = builtins.__import__(name, *place, **named)
    return NUMPY if module is np else module
