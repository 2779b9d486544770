"""Sums and products of models, and where they start: one part after the other."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from jaxfit.models._either import repeated, xp
from jaxfit.models._guess import Remainder, beside, orthonormal, project
from jaxfit.models._model import Model
from jaxfit.models._peaks import Peak
from jaxfit.models._place import placed
from jaxfit.models._waves import DampedSine, Sine

ROUNDS = 2  # in which each part is sought beside the others


def added(first: Model, second: Model) -> "Sum":
    """The sum of two models, of one level."""
    return Sum(first.parts + second.parts)


def multiplied(first: Model, second: Model) -> "Product":
    """The product of two models, of one level."""
    return Product(_factors(first) + _factors(second))


def _factors(model: Model) -> tuple[Model, ...]:
    return model.members if isinstance(model, Product) else (model,)


class _Composite(Model):
    """Several models with different names."""

    members: tuple[Model, ...]

    def __check_init__(self):
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            labels = ", ".join(member.label for member in self.members)
            raise ValueError(
                f"{labels} have parameters of the same name: {', '.join(twice)}. Give "
                "one of them a prefix, such as Gaussian(prefix='b_')."
            )

    @property
    def own_names(self):
        return self.names

    @property
    def names(self):
        return tuple(name for member in self.members for name in member.names)

    @property
    def bounds(self):
        return {k: v for member in self.members for k, v in member.bounds.items()}

    @property
    def starts_from_data(self):
        return any(member.starts_from_data for member in self.members)

    @property
    def starts_in_numpy(self):
        return all(m.starts_in_numpy and m.starts_from_data for m in self.members)

    @property
    def is_pointwise(self):
        return all(member.is_pointwise for member in self.members)

    @property
    def places(self):  # type: ignore[override]
        return tuple(m.prefix + name for m in self.members for name in m.places)

    @property
    def scales(self):  # type: ignore[override]
        return tuple(m.prefix + name for m in self.members for name in m.scales)

    def derived(self, parameters, origin=None):
        found = [member.derived(parameters, origin) for member in self.members]
        return {k: v for one in found for k, v in one.items()}

    def moved(self, parameters, origin):
        found: dict[str, Any] = {}
        for member in self.members:
            changed = member.moved(parameters, origin)
            if changed is None:
                return None
            found |= changed
        return found


class Sum(_Composite):
    """The sum of models: peaks on a background, say."""

    @property
    def label(self):
        return " + ".join(member.label for member in self.members)

    @property
    def parts(self):
        return self.members

    def evaluate(self, x, parameters):
        return functools.reduce(
            xp.add, [member.evaluate(x, parameters) for member in self.members]
        )

    def search(self, rest, known):
        """The parts beside each other, with the background free beside them all.

        Peaks are placed together; other curves are sought one after the other, each
        beside the others as they stand. In the end all linear parameters are solved
        for together.
        """
        rigid = [m for m in self.members if not m.linear]
        found: dict[str, Array] = {}
        for member in rigid:
            found |= member.searched(rest, known)
            values = rest.factor * member.evaluate(rest.x, found)
            rest = rest._replace(y=rest.y - xp.where(xp.isfinite(values), values, 0))
        backgrounds = [m for m in self.members if m.is_background]
        peaks = [m for m in self.members if isinstance(m, Peak)]
        curves = [m for m in self.members if m not in rigid + backgrounds + peaks]
        parts = [_Part([m], functools.partial(m.searched, known=known)) for m in curves]
        if peaks:
            together = functools.partial(placed, peaks, known=known)
            parts.append(_Part(peaks, together))
        columns, fixed = _linear(backgrounds, rest, {}, known)
        beside_all = rest._replace(
            y=rest.y - fixed,
            basis=orthonormal(xp.concatenate([rest.basis, *columns.values()])),
        )
        found |= _in_rounds(parts, beside_all)
        members = [m for m in self.members if m.linear]
        return found | _resolved(members, rest, found, known)


class Product(_Composite):
    """The product of models: an oscillation under an envelope, say."""

    @property
    def label(self):
        return " * ".join(
            f"({m.label})" if len(m.parts) > 1 else m.label for m in self.members
        )

    @property
    def linear(self):  # type: ignore[override]
        """The linear parameters of the first factor that has any."""
        for member in self.members:
            if member.linear and not isinstance(member, _Composite):
                return tuple(member.prefix + name for name in member.linear)
        return ()

    @property
    def is_background(self):
        return False

    def columns(self, x, **others):
        first = next(m for m in self.members if set(self.linear) <= set(m.names))
        rest = [m.evaluate(x, others) for m in self.members if m is not first]
        own = {
            n: others[first.prefix + n]
            for n in first.own_names
            if n not in first.linear
        }
        return [
            functools.reduce(xp.multiply, rest, column)
            for column in first.columns(x, **own)
        ]

    def evaluate(self, x, parameters):
        return functools.reduce(
            xp.multiply, [member.evaluate(x, parameters) for member in self.members]
        )

    def search(self, rest, known):
        """Each factor with the others as they stand, oscillations first, and again."""
        members = sorted(self.members, key=lambda m: not _oscillates(m))

        def once(_, state):
            found, values = state
            for k, member in enumerate(members):
                others = [v for j, v in enumerate(values) if j != k]
                factor = functools.reduce(xp.multiply, others, rest.factor)
                found = found | member.searched(rest._replace(factor=factor), known)
                own = member.evaluate(rest.x, found)
                own = xp.where(xp.isfinite(own), own, 0)
                values = (*values[:k], own, *values[k + 1 :])
            return found, values

        ones = tuple(xp.ones_like(rest.y) for _ in members)
        zeros = dict.fromkeys(self.names, xp.zeros((), rest.y.dtype))
        return repeated(rest.y, ROUNDS, once, (zeros, ones))[0]


def _oscillates(model: Model) -> bool:
    return any(isinstance(part, (Sine, DampedSine)) for part in model.parts)


# Starts of sums


class _Part(NamedTuple):
    """Members of a sum that are sought together, and how."""

    members: Sequence[Model]
    search: Callable[[Remainder], dict[str, Array]]


def _linear(members, rest: Remainder, found, known):
    """Columns (1, m) by name of what is linear and not known, and the known part."""
    columns: dict[str, Array] = {}
    fixed = xp.zeros_like(rest.y)
    for member in members:
        others = {
            n: found[member.prefix + n]
            for n in member.own_names
            if n not in member.linear
        }
        values = member.columns(rest.x, **others)
        for name, column in zip(member.linear, values, strict=True):
            column = xp.where(xp.isfinite(column), column, 0) * rest.factor
            if member.prefix + name in known:
                fixed = fixed + known[member.prefix + name] * column
            else:
                columns[member.prefix + name] = column[None]
    return columns, fixed


def _in_rounds(parts: Sequence[_Part], rest: Remainder) -> dict[str, Array]:
    """Each part beside the others, as far as these are found."""
    if len(parts) < 2:
        return parts[0].search(rest) if parts else {}

    def once(_, state):
        found, columns = state
        for k, part in enumerate(parts):
            others = [c for j, c in enumerate(columns) if j != k]
            basis = orthonormal(xp.concatenate([rest.basis, *others]))
            found = found | part.search(rest._replace(basis=basis))
            own, _ = _linear(part.members, rest, found, {})
            own = xp.concatenate([*own.values()])
            columns = (*columns[:k], own, *columns[k + 1 :])
        return found, columns

    dtype, m = rest.y.dtype, len(rest.y)
    names = [n for part in parts for member in part.members for n in member.names]
    nothing = tuple(
        xp.zeros((sum(len(member.linear) for member in part.members), m), dtype)
        for part in parts
    )
    zeros = dict.fromkeys(names, xp.zeros((), dtype))
    return repeated(rest.y, ROUNDS, once, (zeros, nothing))[0]


def _resolved(members, rest: Remainder, found, known) -> dict[str, Array]:
    """All linear parameters together; those that are known stay."""
    columns, fixed = _linear(members, rest, found, known)
    if not columns:
        return {}
    stack = beside(rest.basis, xp.concatenate([*columns.values()]))
    coefficients, _ = project(stack, rest._replace(y=rest.y - fixed).orthogonal)
    given = {
        name: xp.asarray(known[name])
        for m in members
        for name in m.names
        if name in known
    }
    return given | dict(zip(columns, coefficients, strict=True))
