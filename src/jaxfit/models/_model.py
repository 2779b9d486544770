"""What a model is: a function of x with named parameters, limits, and a start.

A model of one's own is a function `f(x, a, b)`, or a subclass of `Model` with a method
`function(self, x, a, b)`; the names of its parameters are those of the arguments.
"""

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxfit._programs.compiled import compiled
from jaxfit._programs.host import double_precision
from jaxfit._scipy.arguments import coordinates, is_numbers, real_points
from jaxfit.models import _guess as _start
from jaxfit.models._either import xp

Params = Mapping[str, Any]
Interval = tuple[float, float]

POSITIVE = (0.0, math.inf)


class Model(eqx.Module):
    """A function of x with named parameters.

    Models compose: `Gaussian() + Gaussian(prefix="b_") + Linear()`, `Sine() * Step()`;
    a plain function may be added too. To write one, define `function`, and what else
    applies: `limits`, `linear` and `candidates` (or `start`), `quantities`, and
    `places` or `about` where the curve can be moved along x.

    Args:
        prefix: stands before the name of every parameter.
    """

    prefix: str = eqx.field(default="", static=True, kw_only=True)

    limits: ClassVar[Mapping[str, Interval]] = {}
    """Natural bounds (lower, upper) by name; others are free."""
    linear: ClassVar[tuple[str, ...]] = ()
    """Parameters in which the model is linear once all others are given."""
    places: ClassVar[tuple[str, ...]] = ()
    """Parameters that are an x, such as a center: see `about`."""
    scales: ClassVar[tuple[str, ...]] = ()
    """Parameters that `about` multiplies by a positive number, such as an amplitude."""
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

    def start(self, x: PyTree, y: Array, known: Params) -> dict[str, Array]:
        """A start from data: the best candidate, with its linear parameters.

        Args:
            known: values by name that are given, and need no guess.
        """
        return self.search(_start.alone(x, y), known)

    def search(self, rest: _start.Remainder, known: Params) -> dict[str, Any]:
        """`start` of a part of a model, from what the others leave of the data."""
        if type(self).start is not Model.start:
            return self.start(rest.x, rest.orthogonal, known)
        if not self.linear:
            return self._start_without_linear()
        candidates = _start.with_known(self.candidates(rest.x, rest.orthogonal), known)
        limits = self._linear_limits
        others, linear = _start.best_of(self.columns, rest, candidates, limits)
        return others | dict(zip(self.linear, linear, strict=True))

    def quantities(self, **parameters: Array) -> dict[str, Array]:
        """What follows from the parameters: a width at half maximum, an area."""
        return {}

    def about(self, origin: Any, **parameters: Any) -> dict[str, Any] | None:
        """The parameters that change when x counts from an origin; None: it cannot.

        The curve is the same: f(x, p) = f(x - origin, q), with q = p but for these.
        Far from x = 0 (dates as numbers) a fit varies q, which no cancellation spoils.
        """
        return {name: parameters[name] - origin for name in self.places} or None

    def quantities_about(self, origin: Any, **parameters: Array) -> dict[str, Array]:
        """`quantities`, from the parameters for an x that counts from an origin."""
        moved = self.about(-origin, **parameters)
        return self.quantities(**(parameters | (moved or {})))

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
    def starts_from_data(self) -> bool:
        """Whether `start` looks at the data."""
        return True

    @property
    def starts_in_numpy(self) -> bool:
        """Whether its start can be found without a program: see `_either.py`."""
        return type(self).__module__.startswith("jaxfit.models.")

    @property
    def is_pointwise(self) -> bool:
        """Whether it is known to treat each point by itself."""
        return type(self).__module__.startswith("jaxfit.models.")

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
        x = jax.tree.map(jnp.asarray, x, is_leaf=is_numbers)
        return self.evaluate(x, parameters)

    def derived(self, parameters: Params, origin: Any = None) -> dict[str, Array]:
        """Derived quantities by name, with the prefix.

        Args:
            origin: where the x counts from to which the parameters belong; None: 0.
        """
        own = self._own(parameters)
        if origin is None:
            own = self.quantities(**own)
        else:
            own = self.quantities_about(origin, **own)
        return {self.prefix + name: value for name, value in own.items()}

    def moved(self, parameters: Params, origin: Any) -> dict[str, Any] | None:
        """`about` with the prefix."""
        changed = self.about(origin, **self._own(parameters))
        if changed is None:
            return None
        return {self.prefix + name: value for name, value in changed.items()}

    def starts(self, x: PyTree, y: Array, known: Params) -> dict[str, Array]:
        """`start` with the prefix, and the known values, which may be others' too."""
        return self.searched(_start.alone(x, y), known)

    def searched(self, rest: _start.Remainder, known: Params) -> dict[str, Array]:
        """`search` with the prefix, and the known values, which may be others' too."""
        own = self._known(known)
        found = self.search(rest, own) | own
        found = {n: xp.asarray(v, rest.y.dtype) for n, v in found.items()}
        return self._with_prefix(found)

    def columns(self, x: PyTree, **others: Array) -> list[Array]:
        """The values that one unit of each linear parameter adds."""
        zeros = dict.fromkeys(self.linear, 0.0)
        axes = x if isinstance(x, tuple) else (x,)
        return [
            xp.broadcast_arrays(
                axes[0], self.function(x, **{**others, **zeros, name: 1.0})
            )[1]
            for name in self.linear
        ]

    def guess(self, x: PyTree, y: Any) -> dict[str, Any]:
        """A start from data, by name.

        Args:
            x: the coordinates: (m,), or a tuple of arrays, each of the shape of y.
            y: the data, NaN or masked where there is none; with leading axes for a
                batch.

        Returns:
            A number for each parameter; for a batch arrays of its leading axes.
        """
        y, x = jax.tree.map(np.ma.getdata, (real_points(y, "y"), coordinates(x)))
        origin, ones = _start.far_middle(x), dict.fromkeys(self.names, 1.0)
        with double_precision(self):
            if origin is not None and self.moved(ones, origin) is None:
                origin = None
            about = x if origin is None else x - origin
            number = math.prod(_start.batch_shape(x, y))
            if _start.is_for_numpy(self, number, y.size // max(number, 1)):
                found = _start.guess_in_numpy(self, about, y)
            else:
                found = compiled(_start.guess, self, about, y)
            if origin is not None:
                with np.errstate(all="ignore"):
                    found = found | (self.moved(found, -origin) or {})
        return {name: np.asarray(found[name])[()] for name in self.names}

    def __add__(self, other: Any) -> "Model":
        from jaxfit.models._compose import added

        return added(self, as_model(other))

    def __radd__(self, other: Any) -> "Model":
        return as_model(other) + self

    def __mul__(self, other: Any) -> "Model":
        from jaxfit.models._compose import multiplied

        return multiplied(self, as_model(other))

    def __rmul__(self, other: Any) -> "Model":
        return as_model(other) * self

    def _start_without_linear(self) -> dict[str, float]:
        """Where nothing is known of a model, as of a plain function."""
        if type(self).candidates is not Model.candidates:
            raise TypeError(
                f"{type(self).__name__} has candidates and no linear parameter, by "
                "which they are judged. Name one in `linear`, or define start()."
            )
        return dict.fromkeys(self.own_names, _start.DEFAULT_START)

    @property
    def _linear_limits(self) -> list[Interval]:
        return [self.limits.get(name, (-math.inf, math.inf)) for name in self.linear]

    def _known(self, known: Params) -> dict[str, Any]:
        """Which of its own parameters are known, without the prefix."""
        names = {self.prefix + name: name for name in self.own_names}
        return {names[name]: value for name, value in known.items() if name in names}

    def _with_prefix(self, own: Params) -> dict[str, Any]:
        return {self.prefix + name: value for name, value in own.items()}

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

    @property
    def starts_from_data(self):
        return False

    @property
    def is_pointwise(self):
        return False

    def start(self, x, y, known):
        return {p.name: np.asarray(_default(p)) for p in self._parameters}

    @property
    def _parameters(self):
        return list(inspect.signature(self.plain).parameters.values())[1:]


def _default(parameter: inspect.Parameter) -> float:
    """Where a parameter of a plain function starts."""
    default = parameter.default
    is_number = isinstance(default, (int, float, np.number, np.ndarray))
    return float(default) if is_number else _start.DEFAULT_START


@functools.lru_cache(maxsize=64)
def _of_function(function: types.FunctionType) -> FunctionModel:
    return FunctionModel(function)


def as_model(model: Any) -> Model:
    """A model from a model, a plain function, or a text such as "gaussian + linear"."""
    if isinstance(model, types.FunctionType):
        return _of_function(model)
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
