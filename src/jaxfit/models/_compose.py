"""Sums and products of models, and where they start: one part after the other."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxfit.models import _start
from jaxfit.models._model import Model


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

    def start(self, x, y, known):
        return self.starts(x, y, known)


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
            jnp.add, [member.evaluate(x, parameters) for member in self.members]
        )

    def starts(self, x, y, known):
        """Background from the edges, then the largest peak of what is left, and so on.

        Curves that are no peaks (a decay, say) are found together with the background.
        In the end all linear parameters are solved for together.
        """
        peaks = [m for m in self.members if m.is_peak]
        backgrounds = [m for m in self.members if m.is_background]
        curves = [m for m in self.members if m not in peaks + backgrounds]
        found: dict[str, Array] = {}
        left = y
        for curve in curves:
            found |= _beside(curve, backgrounds, x, left, known)
            left = left - curve.evaluate(x, found)
        if backgrounds:
            found |= _at_edges(backgrounds, x, left, known, only_edges=bool(peaks))
            for background in backgrounds:
                left = left - background.evaluate(x, found)
        return _placed(self.members, peaks, x, y, left, found, known)


class Product(_Composite):
    """The product of models: an oscillation under an envelope, say."""

    @property
    def label(self):
        return " * ".join(
            f"({m.label})" if len(m.parts) > 1 else m.label for m in self.members
        )

    def evaluate(self, x, parameters):
        return functools.reduce(
            jnp.multiply, [member.evaluate(x, parameters) for member in self.members]
        )

    def starts(self, x, y, known):
        """Each factor from the data over the factors before it."""
        found: dict[str, Array] = {}
        for member in self.members:
            found |= member.starts(x, y, known)
            values = member.evaluate(x, found)
            floor = 0.1 * jnp.max(jnp.abs(values))
            usable = jnp.abs(values) > floor
            y = jnp.where(usable, y / jnp.where(usable, values, 1), jnp.sign(values))
        return found


# Starts of sums


def _beside(curve: Model, backgrounds, x, y, known) -> dict[str, Array]:
    """The start of a curve that has a background beside it."""
    if not curve.linear or isinstance(curve, _Composite):
        return curve.starts(x, y, known)

    def columns(x, **others):
        mine = curve.columns(x, **others)
        return [column for b in backgrounds for column in b.columns(x)] + mine

    free = [(-math.inf, math.inf) for b in backgrounds for _ in b.linear]
    limits = [*free, *curve._linear_limits]
    own = curve._known(known)
    candidates = _start.with_known(curve.candidates(x, y), own)
    others, linear = _start.best_of(columns, x, y, candidates, limits)
    found = others | dict(zip(curve.linear, linear[len(free) :], strict=True)) | own
    return {curve.prefix + name: value for name, value in found.items()}


def _at_edges(backgrounds, x, y, known, only_edges: bool) -> dict[str, Array]:
    """The background, where there are peaks from the edges of the data alone."""
    if only_edges:
        axes = x if isinstance(x, tuple) else (x,)
        edge = _start.away_from_middle(axes)
        x, y = jax.tree.map(lambda leaf: leaf[edge], (x, y))
    columns = [column for b in backgrounds for column in b.columns(x)]
    coefficients, _ = _start.project(columns, y)
    names = [b.prefix + name for b in backgrounds for name in b.linear]
    found = dict(zip(names, coefficients, strict=True))
    return found | {name: known[name] for name in names if name in known}


def _placed(members, peaks, x, y, left, found, known) -> dict[str, Array]:
    """Peaks at what the background leaves, in the best order.

    Those of which something is known come first. Then the largest peak goes to the
    next, and so on. Where peaks are of several kinds, up to three, it matters which is
    which: every order of the kinds is tried.
    """
    placed = [m for m in peaks if any(name in known for name in m.names)]
    free = [m for m in peaks if m not in placed]
    orders = [tuple(free)]
    if len({type(m) for m in free}) > 1 and len(free) < 4:
        every = list(itertools.permutations(free))
        orders = list({tuple(map(type, one)): one for one in every[::-1]}.values())
    ways, sizes = [], []
    for order in orders:
        way = found | _pursued([*placed, *order], x, left, known)
        ways.append(_resolved(members, x, y, way, known))
        sizes.append(jnp.sum((y - sum(m.evaluate(x, ways[-1]) for m in members)) ** 2))
    if len(orders) == 1:
        return ways[0]
    best = jnp.argmin(jnp.nan_to_num(jnp.stack(sizes), nan=jnp.inf))
    return {name: jnp.stack([way[name] for way in ways])[best] for name in ways[0]}


def _pursued(peaks, x, y, known) -> dict[str, Array]:
    """One peak after the other, each from what the others leave, and once more."""

    def pursue(_, state):
        left, values, found = state
        values, found = list(values), dict(found)
        for k, member in enumerate(peaks):
            left = left + values[k]
            start = member.starts(x, left, known)
            found |= {name: value.astype(y.dtype) for name, value in start.items()}
            values[k] = member.evaluate(x, found)
            left = left - values[k]
        return left, values, found

    zero = jnp.zeros((), y.dtype)
    nothing = dict.fromkeys((name for m in peaks for name in m.names), zero)
    state = y, [jnp.zeros_like(y) for _ in peaks], nothing
    if len(peaks) < 2:
        return pursue(0, state)[2]
    return jax.lax.fori_loop(0, 2, pursue, state)[2]


def _resolved(members, x, y, found, known) -> dict[str, Array]:
    """All linear parameters together, unless one changes its sign by that.

    Those that are known stay.
    """
    plain = [m for m in members if m.linear and not isinstance(m, _Composite)]
    names, columns, is_height = [], [], []
    rest = y
    for member in members:
        if member not in plain:
            rest = rest - member.evaluate(x, found)
            continue
        others = {n: found[member.prefix + n] for n in member.own_names}
        for name in member.linear:
            del others[name]
        names += [member.prefix + name for name in member.linear]
        is_height += [not member.is_background] * len(member.linear)
        columns += member.columns(x, **others)
    if not columns:
        return found
    coefficients, left = _start.project(columns, rest)
    fine = jnp.isfinite(left)
    for name, value, height in zip(names, coefficients, is_height, strict=True):
        if height:
            fine = fine & (value * found[name] > 0)
    better = {
        name: jnp.where(fine, value, found[name])
        for name, value in zip(names, coefficients, strict=True)
        if name not in known
    }
    return found | better
