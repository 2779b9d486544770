"""What a model is: named parameters, limits, a start from data, and how models add up.

A model of one's own is a function `f(x, a, b)`, or a subclass of `Model` with a method
`function(self, x, a, b)`; the names of its parameters are those of the arguments.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxfit._compile import compiled
from jaxfit._host import double_precision
from jaxfit.models import _start

Params = Mapping[str, Any]
Interval = tuple[float, float]

POSITIVE = (0.0, math.inf)
DEFAULT_START = 1.0  # of a parameter of which nothing is known, as in curve_fit


class Model(eqx.Module):
    """A function of x with named parameters.

    Models compose: `Gaussian() + Gaussian(prefix="b_") + Linear()`, `Sine() * Step()`;
    a plain function may be added too. To write one, define `function`, and what else
    applies: `limits`, `linear` and `candidates` (or `start`), and `quantities`.

    Args:
        prefix: stands before the name of every parameter.
    """

    prefix: str = eqx.field(default="", static=True, kw_only=True)

    limits: ClassVar[Mapping[str, Interval]] = {}
    """Natural bounds (lower, upper) by name; others are free."""
    linear: ClassVar[tuple[str, ...]] = ()
    """Parameters in which the model is linear once all others are given."""
    is_peak: ClassVar[bool] = False
    """Whether it falls off on both sides, so that a sum finds its place by itself."""

    def __check_init__(self):
        if not (self.prefix == "" or (self.prefix + "x").isidentifier()):
            raise ValueError(
                f"prefix is {self.prefix!r}; give letters, digits and underscores, "
                "such as 'b_'."
            )

    # What a subclass defines

    def function(self, x: PyTree, **parameters: Array) -> Array:
        """The model's values at x, in `jax.numpy`, of parameters by name."""
        raise NotImplementedError(
            f"{type(self).__name__} must define function(self, x, a, b, ...)."
        )

    def candidates(self, x: PyTree, y: Array) -> dict[str, Array]:
        """Values (K,) to try for the parameters that are not linear.

        Args:
            x: ascending, (m,); a tuple of such vectors for several coordinates.
            y: data (m,), finite, without background.
        """
        return {}

    def start(self, x: PyTree, y: Array) -> dict[str, Array]:
        """A start from data: the best candidate, with its linear parameters."""
        candidates, limits = self.candidates(x, y), self._linear_limits
        others, linear = _start.best_of(self.columns, x, y, candidates, limits)
        return others | dict(zip(self.linear, linear, strict=True))

    def quantities(self, **parameters: Array) -> dict[str, Array]:
        """What follows from the parameters: a width at half maximum, an area."""
        return {}

    # What it then has

    @property
    def own_names(self) -> tuple[str, ...]:
        """The parameters without the prefix."""
        return _arguments_of(type(self).function)[2:]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in order."""
        return tuple(self.prefix + name for name in self.own_names)

    @property
    def bounds(self) -> dict[str, Interval]:
        """Natural bounds of every parameter."""
        free = (-math.inf, math.inf)
        return {self.prefix + n: self.limits.get(n, free) for n in self.own_names}

    @property
    def label(self) -> str:
        """A name for people, such as "Gaussian b"."""
        return f"{type(self).__name__} {self.prefix.rstrip('_')}".strip()

    @property
    def is_background(self) -> bool:
        """Whether it is linear in all its parameters."""
        return bool(self.own_names) and set(self.linear) == set(self.own_names)

    @property
    def parts(self) -> tuple["Model", ...]:
        """What it is the sum of."""
        return (self,)

    def evaluate(self, x: PyTree, parameters: Params) -> Array:
        """The values at x; parameters that belong to others are left alone."""
        return self.function(x, **self._own(parameters))

    def __call__(
        self, x: PyTree, parameters: Params | None = None, /, **named: Any
    ) -> Array:
        """The values at x, of parameters by name: a dictionary, keywords, or both."""
        parameters = {**(parameters or {}), **named}
        unknown = [name for name in parameters if name not in self.names]
        missing = [name for name in self.names if name not in parameters]
        if unknown or missing:
            raise TypeError(
                f"{self.label} has the parameters {', '.join(self.names)}; "
                + "; ".join(
                    f"{what}: {', '.join(names)}"
                    for what, names in (("unknown", unknown), ("missing", missing))
                    if names
                )
                + "."
            )
        return self.evaluate(jax.tree.map(jnp.asarray, x), parameters)

    def derived(self, parameters: Params) -> dict[str, Array]:
        """Derived quantities by name, with the prefix."""
        own = self.quantities(**self._own(parameters))
        return {self.prefix + name: value for name, value in own.items()}

    def starts(self, x: PyTree, y: Array) -> dict[str, Array]:
        """`start` with the prefix."""
        return {self.prefix + n: v for n, v in self.start(x, y).items()}

    def columns(self, x: PyTree, **others: Array) -> list[Array]:
        """The values that one unit of each linear parameter adds."""
        zeros = dict.fromkeys(self.linear, 0.0)
        axes = x if isinstance(x, tuple) else (x,)
        return [
            jnp.broadcast_to(
                self.function(x, **{**others, **zeros, name: 1.0}), axes[0].shape
            )
            for name in self.linear
        ]

    def guess(self, x: PyTree, y: Any) -> dict[str, Any]:
        """A start from data, by name.

        Args:
            x: the coordinates: (m,), or a tuple of arrays, each of the shape of y.
            y: the data, NaN where there is none; with leading axes for a batch.

        Returns:
            A number for each parameter; for a batch arrays of its leading axes.
        """
        y = np.asarray(y, float)
        x = jax.tree.map(lambda leaf: np.asarray(leaf, float), x)
        with double_precision(self):
            found = compiled(_guess, self, (x, y))
        return {name: np.asarray(found[name])[()] for name in self.names}

    def __add__(self, other: Any) -> "Model":
        return Sum(self.parts + as_model(other).parts)

    def __radd__(self, other: Any) -> "Model":
        return as_model(other) + self

    def __mul__(self, other: Any) -> "Model":
        return Product(_factors(self) + _factors(as_model(other)))

    def __rmul__(self, other: Any) -> "Model":
        return as_model(other) * self

    @property
    def _linear_limits(self) -> list[Interval]:
        return [self.limits.get(name, (-math.inf, math.inf)) for name in self.linear]

    def _own(self, parameters: Params) -> dict[str, Any]:
        return {n: parameters[self.prefix + n] for n in self.own_names}


@functools.lru_cache(maxsize=512)
def _arguments_of(function: Callable) -> tuple[str, ...]:
    """The names of a function's arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{function!r} does not tell its arguments. Write the model as "
            "f(x, a, b, ...)."
        ) from error
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(
                f"{getattr(function, '__name__', function)} takes {p}, which names no "
                "parameter. Write the model as f(x, a, b, ...)."
            )
    return tuple(p.name for p in parameters)


class FunctionModel(Model):
    """A plain function `f(x, a, b, ...)` as a model; defaults are starts.

    Args:
        plain: the function, in `jax.numpy`.
    """

    plain: Callable

    def __check_init__(self):
        if len(self._arguments) < 2:
            raise TypeError(
                f"{self.label} takes {len(self._arguments)} argument(s); a model is "
                "f(x, a, b, ...), with at least one parameter after x."
            )

    @property
    def _arguments(self):
        return _arguments_of(self.plain)

    @property
    def own_names(self):
        return self._arguments[1:]

    @property
    def label(self):
        name = getattr(self.plain, "__name__", type(self.plain).__name__)
        return f"{name} {self.prefix.rstrip('_')}".strip()

    def function(self, x, **parameters):
        return self.plain(x, **parameters)

    def evaluate(self, x, parameters):
        positional, named = [], {}
        for p in self._parameters:
            value = parameters[self.prefix + p.name]
            if p.kind == p.KEYWORD_ONLY:
                named[p.name] = value
            else:
                positional.append(value)
        return self.plain(x, *positional, **named)

    def start(self, x, y):
        return {p.name: jnp.asarray(_default(p)) for p in self._parameters}

    @property
    def _parameters(self):
        return list(inspect.signature(self.plain).parameters.values())[1:]


def _default(parameter: inspect.Parameter) -> float:
    """Where a parameter of a plain function starts."""
    default = parameter.default
    is_number = isinstance(default, (int, float, np.number, np.ndarray))
    return float(default) if is_number else DEFAULT_START


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

    def derived(self, parameters):
        found = [member.derived(parameters) for member in self.members]
        return {k: v for one in found for k, v in one.items()}

    def start(self, x, y):
        return self.starts(x, y)


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

    def starts(self, x, y):
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
            found |= _beside(curve, backgrounds, x, left)
            left = left - curve.evaluate(x, found)
        if backgrounds:
            found |= _at_edges(backgrounds, x, left, only_edges=bool(peaks))
            for background in backgrounds:
                left = left - background.evaluate(x, found)
        return _placed(self.members, peaks, x, y, left, found)


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

    def starts(self, x, y):
        """Each factor from the data over the factors before it."""
        found: dict[str, Array] = {}
        for member in self.members:
            found |= member.starts(x, y)
            values = member.evaluate(x, found)
            floor = 0.1 * jnp.max(jnp.abs(values))
            usable = jnp.abs(values) > floor
            y = jnp.where(usable, y / jnp.where(usable, values, 1), jnp.sign(values))
        return found


def _factors(model: Model) -> tuple[Model, ...]:
    return model.members if isinstance(model, Product) else (model,)


def as_model(model: Any) -> Model:
    """A model from a model, a plain function, or a text such as "gaussian + linear"."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        from jaxfit.models._parse import parse

        return parse(model)
    if isinstance(model, type) and issubclass(model, Model):
        raise TypeError(f"{model.__name__} is a class; write {model.__name__}().")
    if callable(model):
        return FunctionModel(model)
    raise TypeError(
        f"model is {model!r}; expected one of jaxfit.models, a sum or product of them, "
        "a function f(x, a, b, ...), or a text such as 'gaussian + linear'."
    )


# Starts of sums


def _beside(curve: Model, backgrounds, x, y) -> dict[str, Array]:
    """The start of a curve that has a background beside it."""
    if not curve.linear or isinstance(curve, _Composite):
        return curve.starts(x, y)

    def columns(x, **others):
        mine = curve.columns(x, **others)
        return [column for b in backgrounds for column in b.columns(x)] + mine

    free = [(-math.inf, math.inf) for b in backgrounds for _ in b.linear]
    limits = [*free, *curve._linear_limits]
    others, linear = _start.best_of(columns, x, y, curve.candidates(x, y), limits)
    mine = linear[len(free) :]
    found = others | dict(zip(curve.linear, mine, strict=True))
    return {curve.prefix + name: value for name, value in found.items()}


def _at_edges(backgrounds, x, y, only_edges: bool) -> dict[str, Array]:
    """The background, where there are peaks from the edges of the data alone."""
    if only_edges:
        axes = x if isinstance(x, tuple) else (x,)
        edge = _start.away_from_middle(axes)
        x, y = jax.tree.map(lambda leaf: leaf[edge], (x, y))
    columns = [column for b in backgrounds for column in b.columns(x)]
    coefficients, _ = _start.project(columns, y)
    names = [b.prefix + name for b in backgrounds for name in b.linear]
    return dict(zip(names, coefficients, strict=True))


def _placed(members, peaks, x, y, left, found) -> dict[str, Array]:
    """Peaks at what the background leaves, in the best order.

    The largest peak goes to the first, the next to the second, and then each is looked
    for again in the others' absence. Where peaks are of several kinds, up to three, it
    matters which is which: every order is tried.
    """
    kinds = {type(m) for m in peaks}
    tried = itertools.permutations(peaks) if 1 < len(kinds) <= len(peaks) < 4 else ()
    best, least = None, None
    for order in tried or [peaks]:
        one = _resolved(members, x, y, found | _pursued(order, x, left))
        misfit = y - sum(m.evaluate(x, one) for m in members)
        size = jnp.sum(misfit**2)
        if best is None:
            best, least = one, size
            continue
        better = size < least
        best = {name: jnp.where(better, one[name], best[name]) for name in best}
        least = jnp.where(better, size, least)
    return best or {}


def _pursued(peaks, x, left) -> dict[str, Array]:
    """One peak after the other, each from what the others leave."""
    found: dict[str, Array] = {}
    for _ in range(2 if len(peaks) > 1 else 1):
        for member in peaks:
            if member.names[0] in found:
                left = left + member.evaluate(x, found)
            found |= member.starts(x, left)
            left = left - member.evaluate(x, found)
    return found


def _resolved(members, x, y, found) -> dict[str, Array]:
    """All linear parameters together, unless one changes its sign by that."""
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
    }
    return found | better


# Starts of data as they come


def start_from(
    model: Model, x: PyTree, y: Float[Array, "..."], valid: Array | None
) -> dict[str, Array]:
    """`starts` for one data set in the shapes of the user's; traced.

    Args:
        valid: of the shape of y, false for points that are to be ignored.
    """
    if all(isinstance(part, FunctionModel) for part in model.parts):
        return model.starts(x, y)
    x, y = flat_coordinates(x, y), jnp.ravel(y)
    if valid is not None:
        index = _start.last_valid(jnp.ravel(valid))
        x, y = jax.tree.map(lambda leaf: leaf[index], (x, y))
    if not isinstance(x, tuple):
        order = jnp.argsort(x)
        x, y = x[order], y[order]
    return {
        name: jnp.where(jnp.isfinite(value), value, DEFAULT_START)
        for name, value in model.starts(x, y).items()
    }


def flat_coordinates(x: PyTree, y: Array) -> Any:
    """One vector for each coordinate, each as long as y."""
    if isinstance(x, (tuple, list)):
        return tuple(jnp.ravel(jnp.broadcast_to(axis, y.shape)) for axis in x)
    if not hasattr(x, "shape") or x.shape == y.shape:
        return jnp.ravel(x)
    if x.shape[1:] == y.shape:
        return tuple(jnp.ravel(axis) for axis in x)
    raise ValueError(
        f"x has the shape {x.shape} and y {y.shape}; give x of the shape of y, or a "
        "tuple of arrays that broadcast to it, one for each coordinate."
    )


def _guess(model, arguments):
    """`Model.guess`, traced, for one data set or for a batch."""
    x, y = arguments
    axes = x if isinstance(x, (tuple, list)) else (x,)
    trailing = jnp.broadcast_shapes(*(np.shape(axis) for axis in axes))
    valid = jnp.isfinite(y)
    one = functools.partial(start_from, model)
    batch = y.shape[: max(y.ndim - len(trailing), 0)]
    for _ in batch:
        one = jax.vmap(one, in_axes=(None, 0, 0))
    found = one(x, y, valid)
    return {k: jnp.broadcast_to(v, batch) for k, v in found.items()}
