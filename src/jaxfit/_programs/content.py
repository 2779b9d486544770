"""What a thing holds, as far as it can be told without knowing what it is for."""

import hashlib
import sys
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import numpy as np

from jaxfit._programs.splits import (
    CONSTANTS,
    Split,
    attributes,
)

FEW = 32  # numbers in a container that become inputs one by one


def content(array: Any) -> tuple[Hashable, ...]:
    """Shape, type and bits of an array."""
    array = np.asarray(array)
    plain = np.ascontiguousarray(array)  # of one dimension at least
    digest = hashlib.blake2b(plain.view(np.uint8).data, digest_size=16)
    return array.shape, str(array.dtype), digest.digest()


def plain_content(value: Any, depth: int = 3) -> Hashable:
    """Numbers and text, and containers and objects that hold some; None for others."""
    kind = type(value)
    if kind in CONSTANTS or kind in (float, complex):
        return kind, repr(value)
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return content(value)
    if depth == 0 or callable(value):
        return None
    if isinstance(value, (tuple, list, set, frozenset)):
        items = tuple(plain_content(item, depth - 1) for item in tuple(value))
        return kind, frozenset(items) if isinstance(value, (set, frozenset)) else items
    space = value if isinstance(value, dict) else attributes(value)
    if not isinstance(space, dict):
        return None
    entries = (
        (plain_content(k), plain_content(v, depth - 1)) for k, v in tuple(space.items())
    )
    return kind, tuple(pair for pair in entries if None not in pair)


def table_of(value: Any) -> Hashable:
    """A long list of floats, or many by name, as a whole; None for anything else."""
    if type(value) not in (list, tuple, dict) or len(value) <= FEW:
        return None
    is_dict = type(value) is dict
    numbers, names = list(value.values() if is_dict else value), tuple(value)
    if set(map(type, numbers)) != {float}:
        return None
    if is_dict and set(map(type, names)) not in ({str}, {int}):
        return None
    return content(np.array(numbers)), is_dict and (type(names[0]), names)


def has_many_numbers(value: Any, split: Split) -> bool:
    """Whether something is a table of numbers, and not a few of them with names."""
    waiting = [child.value for child in split.children]
    if not isinstance(value, (list, tuple, dict)):
        return len(waiting) > FEW and all(type(v) in (float, complex) for v in waiting)
    count, met = 0, set()
    while waiting and count <= FEW:
        item = waiting.pop()
        if type(item) in (float, complex):
            count += 1
        elif type(item) in (list, tuple, dict) and id(item) not in met:
            met.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item
    return count > FEW


def is_plain_object(value: Any) -> bool:
    """Whether all that an object is stands in its attributes."""
    return all(
        cls is object or cls.__module__ not in sys.builtin_module_names
        for cls in type(value).__mro__
    ) and not isinstance(value, (np.ndarray, dict, list, str, BaseException))


def can_be_copied(kind: type) -> bool:
    if hasattr(kind, "__del__"):  # a copy would close what it shares
        return False
    return kind.__new__ is object.__new__ or issubclass(kind, eqx.Module)
