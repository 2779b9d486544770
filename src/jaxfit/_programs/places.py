"""Where a function writes while it is traced, and what becomes of it.

A tracer that was left somewhere is taken back. What was counted or logged is noted: it
is no part of what the function is, as long as nobody else changes it.
"""

from collections import deque
from collections.abc import Hashable
from typing import Any, NamedTuple

from jax.core import Tracer

NOTED_SIZE = 4096  # counters and logs that are remembered
SCALARS = {type(None), bool, int, str, bytes, float, complex}
ABSENT = "absent"  # the key of what was not there
_GONE = object()


class Place(NamedTuple):
    """A place whose content can be replaced, or a container that can be filled."""

    kind: str  # "cell", "item", "attribute", "container", "cache"
    owner: Any
    name: Hashable = None

    @property
    def mark(self) -> Hashable:
        return self.kind, id(self.owner), self.name

    def content(self) -> Any:
        """What is there now; a copy of a container."""
        owner = self.owner
        try:
            if self.kind == "cell":
                return owner.cell_contents
            if self.kind == "attribute":
                return getattr(owner, str(self.name))
            if self.kind == "cache":
                return owner.cache_info().misses
            if self.kind == "item":
                return owner[self.name]
            if isinstance(owner, deque):
                return list(owner)
            if isinstance(owner, list):
                return list.copy(owner)
            return dict.copy(owner)
        except (AttributeError, KeyError, ValueError):  # gone
            return _GONE

    def restore(self, content: Any) -> None:
        """Put back what was there."""
        owner: Any = self.owner
        if self.kind == "cell":
            owner.cell_contents = content
        elif self.kind == "attribute":
            setter = type if isinstance(owner, type) else object
            setter.__setattr__(owner, str(self.name), content)
        elif self.kind == "item":
            owner[self.name] = content
        else:
            # past methods that a subclass has of its own
            kinds: tuple[Any, ...] = list, deque, dict
            kind = next(k for k in kinds if isinstance(owner, k))
            kind.clear(owner)
            (kind.update if kind is dict else kind.extend)(owner, content)


class Snapshot(NamedTuple):
    """The contents of places before a trace."""

    contents: list[tuple[Place, Hashable, Any]]
    """With the key of the content; None where only tracers count."""

    def changed(self) -> list[tuple[Place, Hashable, Any, Any]]:
        """Places with their keys, and what they held and hold."""
        now = [(p, key, old, p.content()) for p, key, old in self.contents]
        return [one for one in now if not _is_same(*one[2:])]

    def take_back_tracers(self) -> bool:
        """Restore places that were given tracers; whether there were any."""
        changed = self.changed()
        for place, *_ in changed:
            if place.kind == "cache":  # nobody can see what is in it
                place.owner.cache_clear()
        leaks = [(place, old) for place, _, old, new in changed if _holds_tracer(new)]
        for place, old in leaks:
            place.restore(old)
        return bool(leaks)

    def take_back(self) -> None:
        """Restore all that was changed: nobody was to see the trace."""
        for place, _, old, _ in self.changed():
            if place.kind == "cache":
                place.owner.cache_clear()
            elif old is not _GONE:
                place.restore(old)

    def note_writes(self) -> None:
        """Remember what tracing left in counters and logs.

        A number that went up and a list that has grown are read as they were before, as
        long as nobody else changes them. Anything else that was written counts.
        """
        for place, key, old, new in self.changed():
            if key is None:
                continue
            if isinstance(old, dict) and isinstance(new, dict):
                _note_new_counters(place.owner, old, new)
            if _has_grown(old, new):
                earlier = _noted.get(place.mark)
                _noted[place.mark] = _Noted(
                    place.owner, new, earlier.key if earlier else key
                )
        while len(_noted) > NOTED_SIZE:
            del _noted[next(iter(_noted))]


class _Noted(NamedTuple):
    """A counter or a log."""

    owner: Any  # kept alive, so that its identity is used once
    left: Any  # what tracing left there
    key: Hashable  # of what was there before


_noted: dict[Hashable, _Noted] = {}


def noted(place: Place, content: Any) -> Hashable | None:
    """The key of a counter or a log that nobody but tracing has changed, or None."""
    entry = _noted.get(place.mark) if _noted else None
    return entry.key if entry and _is_same(entry.left, content) else None


def _note_new_counters(owner: dict, old: dict, new: dict) -> None:
    """Remember whole numbers that tracing was the first to put into a dictionary."""
    for name, item in new.items():
        mark = Place("item", owner, name).mark
        was_absent = name not in old or (mark in _noted and _noted[mark].key is ABSENT)
        if type(item) is int and was_absent:
            _noted[mark] = _Noted(owner, item, ABSENT)


def _is_same(old: Any, new: Any) -> bool:
    """Whether a content is the same object, or one number or text, or of the same."""
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, (list, dict)):
        same = len(old) == len(new) and list(map(id, old)) == list(map(id, new))
        if isinstance(old, dict):
            return same and all(old[key] is new[key] for key in old)
        return same
    return type(old) in SCALARS and old == new


def _holds_tracer(content: Any, depth: int = 4) -> bool:
    """Whether a content is a tracer, or a container with one."""
    if depth and isinstance(content, (dict, list, tuple)):
        items = content.values() if isinstance(content, dict) else content
        return any(_holds_tracer(item, depth - 1) for item in items)
    return isinstance(content, Tracer)


def _has_grown(old: Any, new: Any) -> bool:
    if type(old) is int and type(new) is int:
        return new > old
    return type(old) is list and type(new) is list and _is_same(old, new[: len(old)])


def without_counters(space: dict) -> dict:
    """The attributes of an object that were not first set by tracing."""
    if not _noted:
        return space
    return {
        name: item
        for name, item in space.items()
        if noted(Place("item", space, name), item) is not ABSENT
    }
