"""A call taken apart: what of it is part of a program, and what its inputs are."""

from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jaxfit._programs.content import content
from jaxfit._programs.fingerprint import Part, Reading
from jaxfit._programs.names import is_pure

STRUCTURES = 128  # of arguments, that are remembered

INPUTS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
INPUT = Part("input")

_plain_structures: dict[Hashable, Hashable] = {}


class Static(eqx.Module):
    """A value among the arguments of `compiled` that is part of the program."""

    value: Any = eqx.field(static=True)


class Call:
    """A function and its arguments, taken apart.

    Attributes:
        static: the places of values that are known to be part of the program.
    """

    def __init__(self, function: Callable, arguments: tuple, is_hasty: bool = False):
        self.function, self.arguments, self.is_hasty = function, arguments, is_hasty
        self.leaves, self.structure = jax.tree.flatten(arguments)
        self.is_input = [isinstance(leaf, INPUTS) for leaf in self.leaves]
        self.static: frozenset[int] = frozenset()

    @property
    def inputs(self) -> list:
        """Arrays and numbers among the arguments."""
        return self.inputs_like(self.leaves)

    def inputs_like(self, leaves: list) -> list:
        """The inputs of a call that is alike."""
        return [new(x) for x, d in zip(leaves, self.is_input, strict=True) if d]

    def new_values(self) -> list:
        """The values that functions among the arguments hold."""
        return list(map(new, self.reading.values))

    def read(self) -> None:
        """What of it is part of the program."""
        self.reading = Reading()
        pairs = list(zip(self.leaves, self.is_input, strict=True))
        try:
            self.parts = [INPUT if d else self.reading(x) for x, d in pairs]
            tree = _structure(self.reading, self.structure, self.arguments)
        except RecursionError:  # a long chain of objects
            self.reading, tree = Reading(), None
            self.reading.is_known = False
            self.parts = [INPUT if d else Part("unknown") for _, d in pairs]
        keys = tuple(part.key for part in self.parts)
        setting = self.is_hasty, jax.config.jax_enable_x64
        self.shape = self.function, setting, tree, keys

    def key(self) -> Hashable:
        """The program of all calls like this, with the static values as they are."""
        values, static = self.reading.values, self.static
        if not self.reading.is_movable:
            static = frozenset(range(len(values)))
        return self.shape, tuple((i, _exactly(values[i])) for i in sorted(static))


def new(value: Any) -> Any:
    """The value in an array that JAX has not seen.

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
    while len(_plain_structures) >= STRUCTURES:
        del _plain_structures[next(iter(_plain_structures))]
    _plain_structures[structure] = structure
    return structure


def _described(reading: Reading, node: Any) -> tuple[Hashable, bool]:
    """A key of a pytree without its leaves, and whether it is but types and names."""
    if jax.tree_util.all_leaves([node]):
        return None, True
    children, static = jax.tree_util.default_registry.flatten_one_level(node)
    descriptions = [_described(reading, child) for child in children]
    keys = tuple(key for key, _ in descriptions)
    is_plain = _is_plain(static) and all(plain for _, plain in descriptions)
    return (type(node), reading.by_value(static), keys), is_plain


def _is_plain(static: Any) -> bool:
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
