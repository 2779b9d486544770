"""Sums and products of models, and where they start: one part after the other."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float, PyTree

from jaxfit._numpy.either import Values, repeated, xp
from jaxfit.models._model import Interval, Model, Params
from jaxfit.models._parse import as_model
from jaxfit.models._place import Peak, placed
from jaxfit.models._projection import Remainder, beside, orthonormal, project
from jaxfit.models._waves import DampedSine, Sine

ROUNDS = 2  # in which each part is sought beside the others


class _Composite(Model):
    """Several models with different names."""

    members: tuple[Model, ...]

    def __check_init__(self) -> None:
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            labels = ", ".join(member.label for member in self.members)
            raise ValueError(
                f"{labels} have parameters of the same name: {', '.join(twice)}. Give "
                "one of them a prefix, such as Gaussian(prefix='b_')."
            )

    @property
    def own_names(self) -> tuple[str, ...]:
        return self.names

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for member in self.members for name in member.names)

    @property
    def bounds(self) -> dict[str, Interval]:
        return _merged(member.bounds for member in self.members)

    @property
    def starts_from_data(self) -> bool:
        return any(member.starts_from_data for member in self.members)

    @property
    def starts_in_numpy(self) -> bool:
        return all(m.starts_in_numpy and m.starts_from_data for m in self.members)

    @property
    def is_pointwise(self) -> bool:
        return all(member.is_pointwise for member in self.members)

    @property
    def places(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(m.prefix + name for m in self.members for name in m.places)

    @property
    def scales(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(m.prefix + name for m in self.members for name in m.scales)

    def derived(self, parameters: Params, origin: Any = None) -> dict[str, Any]:
        return _merged(member.derived(parameters, origin) for member in self.members)

    def moved(self, parameters: Params, origin: Any) -> dict[str, Any] | None:
        changes = [member.moved(parameters, origin) for member in self.members]
        movable = [change for change in changes if change is not None]
        return _merged(movable) if len(movable) == len(changes) else None


def _merged(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several tables by name as one."""
    return {name: value for table in tables for name, value in table.items()}


class Sum(_Composite):
    """The sum of models: peaks on a background, say."""

    @property
    def label(self) -> str:
        return " + ".join(member.label for member in self.members)

    @property
    def parts(self) -> tuple[Model, ...]:
        return self.members

    def evaluate(self, x: PyTree, parameters: Params) -> Any:
        return functools.reduce(
            xp.add, [member.evaluate(x, parameters) for member in self.members]
        )

    def start_beside(self, rest: Remainder, known: Params) -> dict[str, Any]:
        """The parts beside each other, with the background free beside them all.

        Peaks are placed together; other curves are sought one after the other, each
        beside the others as they stand. In the end all linear parameters are solved
        for together.
        """
        # less what has no linear parameter, as a plain function has none
        rigid = [m for m in self.members if not m.linear]
        start: dict[str, Any] = {}
        for member in rigid:
            start |= member.guessed_beside(rest, known)
            values = rest.factor * member.evaluate(rest.x, start)
            rest = rest._replace(y=rest.y - _finite(values))

        # peaks and other curves, beside the backgrounds
        backgrounds = [m for m in self.members if m.is_background]
        peaks = [m for m in self.members if isinstance(m, Peak)]
        curves = [m for m in self.members if m not in rigid + backgrounds + peaks]
        parts = [
            _Part([m], functools.partial(m.guessed_beside, known=known)) for m in curves
        ]
        if peaks:
            together = functools.partial(placed, peaks, known=known)
            parts.append(_Part(peaks, together))
        linear = _linear_part(backgrounds, rest, {}, known)
        basis = xp.concatenate([rest.basis, *linear.columns.values()])
        beside_all = rest._replace(y=rest.y - linear.fixed, basis=orthonormal(basis))
        start |= _in_rounds(parts, beside_all)

        members = [m for m in self.members if m.linear]
        return start | _linear_start(members, rest, start, known)


class Product(_Composite):
    """The product of models: an oscillation under an envelope, say."""

    @property
    def label(self) -> str:
        return " * ".join(
            f"({m.label})" if len(m.parts) > 1 else m.label for m in self.members
        )

    @property
    def linear(self) -> tuple[str, ...]:  # type: ignore[override]
        """The linear parameters of the first factor that has any."""
        for member in self.members:
            if member.linear and not isinstance(member, _Composite):
                return tuple(member.prefix + name for name in member.linear)
        return ()

    @property
    def is_background(self) -> bool:
        return False

    def columns(self, x: PyTree, **others: Any) -> list[Any]:
        first = next(m for m in self.members if set(self.linear) <= set(m.names))
        factors = [m.evaluate(x, others) for m in self.members if m is not first]
        return [
            functools.reduce(xp.multiply, factors, column)
            for column in first.columns(x, **_nonlinear(first, others))
        ]

    def evaluate(self, x: PyTree, parameters: Params) -> Any:
        return functools.reduce(
            xp.multiply, [member.evaluate(x, parameters) for member in self.members]
        )

    def start_beside(self, rest: Remainder, known: Params) -> dict[str, Any]:
        """Each factor with the others as they stand, oscillations first, and again."""
        members = sorted(self.members, key=lambda m: not _oscillates(m))

        def once(_: Any, so_far: _Factors) -> _Factors:
            start, values = so_far
            for k, member in enumerate(members):
                others = [v for j, v in enumerate(values) if j != k]
                factor = functools.reduce(xp.multiply, others, rest.factor)
                guess = member.guessed_beside(rest._replace(factor=factor), known)
                start = start | guess
                values_of_member = _finite(member.evaluate(rest.x, start))
                values = (*values[:k], values_of_member, *values[k + 1 :])
            return _Factors(start, values)

        ones = tuple(xp.ones_like(rest.y) for _ in members)
        zeros = dict.fromkeys(self.names, xp.zeros((), rest.y.dtype))
        return repeated(rest.y, ROUNDS, once, _Factors(zeros, ones)).start


class _Factors(NamedTuple):
    """A product's start, as far as it goes."""

    start: dict[str, Any]
    values: tuple[Values, ...]  # of the factors


def _oscillates(model: Model) -> bool:
    return any(isinstance(part, (Sine, DampedSine)) for part in model.parts)


def _finite(values: Any) -> Any:
    return xp.where(xp.isfinite(values), values, 0)


def added(first: Any, second: Any) -> Sum:
    """The sum of two models, or what can be made one, of one level."""
    return Sum(as_model(first).parts + as_model(second).parts)


def multiplied(first: Any, second: Any) -> Product:
    """The product of two models, or what can be made one, of one level."""
    models = as_model(first), as_model(second)
    factors = [m.members if isinstance(m, Product) else (m,) for m in models]
    return Product(factors[0] + factors[1])


# Starts of sums


class _Part(NamedTuple):
    """Members of a sum that are sought together, and how."""

    members: Sequence[Model]
    start_beside: Callable[[Remainder], dict[str, Any]]


class _Linear(NamedTuple):
    """What is linear in some members."""

    columns: dict[str, Float[Any, "1 m"]]  # by name, of parameters that are not known
    fixed: Values  # the values of those that are


def _nonlinear(member: Model, parameters: Params) -> dict[str, Any]:
    """The parameters in which a member is not linear, without the prefix."""
    return {
        name: parameters[member.prefix + name]
        for name in member.own_names
        if name not in member.linear
    }


def _linear_part(
    members: Sequence[Model], rest: Remainder, start: Params, known: Params
) -> _Linear:
    columns: dict[str, Any] = {}
    fixed = xp.zeros_like(rest.y)
    for member in members:
        values = member.columns(rest.x, **_nonlinear(member, start))
        for name, column in zip(member.linear, values, strict=True):
            name, column = member.prefix + name, _finite(column) * rest.factor
            if name in known:
                fixed = fixed + known[name] * column
            else:
                columns[name] = column[None]
    return _Linear(columns, fixed)


class _Beside(NamedTuple):
    """A start of parts of a sum, as far as it goes."""

    start: dict[str, Any]
    columns: tuple[Float[Any, "_ m"], ...]  # of the parts


def _in_rounds(parts: Sequence[_Part], rest: Remainder) -> dict[str, Any]:
    """Each part beside the others, as far as these have a start."""
    if len(parts) < 2:
        return parts[0].start_beside(rest) if parts else {}

    def once(_: Any, so_far: _Beside) -> _Beside:
        start, columns = so_far
        for k, part in enumerate(parts):
            others = [c for j, c in enumerate(columns) if j != k]
            basis = orthonormal(xp.concatenate([rest.basis, *others]))
            start = start | part.start_beside(rest._replace(basis=basis))
            linear = _linear_part(part.members, rest, start, {})
            stack = xp.concatenate([*linear.columns.values()])
            columns = (*columns[:k], stack, *columns[k + 1 :])
        return _Beside(start, columns)

    dtype, m = rest.y.dtype, len(rest.y)
    names = [n for part in parts for member in part.members for n in member.names]
    nothing = tuple(
        xp.zeros((sum(len(member.linear) for member in part.members), m), dtype)
        for part in parts
    )
    zeros = dict.fromkeys(names, xp.zeros((), dtype))
    return repeated(rest.y, ROUNDS, once, _Beside(zeros, nothing)).start


def _linear_start(
    members: Sequence[Model], rest: Remainder, start: Params, known: Params
) -> dict[str, Any]:
    """All linear parameters together; those that are known stay."""
    linear = _linear_part(members, rest, start, known)
    if not linear.columns:
        return {}
    stack = beside(rest.basis, xp.concatenate([*linear.columns.values()]))
    remaining = rest._replace(y=rest.y - linear.fixed).orthogonal
    coefficients = project(stack, remaining).coefficients
    known = _merged(m.with_prefix(m.known_of(known)) for m in members)
    known = {name: xp.asarray(value) for name, value in known.items()}
    return known | dict(zip(linear.columns, coefficients, strict=True))
