"""What a model is: a function of x with named parameters, limits, and a start.

A model of one's own is a function `f(x, a, b)`, or a subclass of `Model` with a method
`function(self, x, a, b)`; the names of its parameters are those of the arguments.

What is made of models (`_guess.py`, `_compose.py`) stands above this file, and is
imported where a model first needs it.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxfit._numpy.either import Values, xp
from jaxfit._scipy.arguments import is_numbers
from jaxfit.models._projection import Remainder, alone, best_of, with_known

Params = Mapping[str, Any]
Candidates = dict[str, Any]  # vectors (K,) by name
Interval = tuple[float, float]

POSITIVE = (0.0, math.inf)
FREE = (-math.inf, math.inf)
DEFAULT_START = 1.0  # of a parameter of which nothing is known, as in curve_fit


class Model(eqx.Module):
    """A function of x with named parameters.

    Models compose: `Gaussian() + Gaussian(prefix="b_") + Linear()`, `Sine() * Step()`;
    a plain function may be added too. To write one, subclass `Model` and define
    `function`, and of these hooks what applies. Names are without the prefix in all of
    them, so that none needs to know it.

    =================== ====================== =========================================
    hook                called with            what for
    =================== ====================== =========================================
    `function`          x, parameters by name  the values; always needed
    `limits`            a table by name        natural bounds, such as (0, inf)
    `linear`            names                  solved for in a start, by least squares
    `candidates`        x, y                   values to try for the other parameters
    `start`             x, y, known values     a start by other means than candidates
    `quantities`        parameters by name     what is derived: an area, a half-life
    `places`            names                  parameters that are an x, as a center is
    `about`             origin, parameters     if more than `places` changes with x's
                                               origin: data far from x = 0
    `quantities_about`  origin, parameters     if `quantities` cancels far from x = 0
    `scales`            names                  what `about` multiplies by a number > 0
    `is_peak`           True or False          whether it falls off on both sides
    `integral`          lower, upper,          its integral over bins, for
                        parameters             `fit(edges=...)`; else by nodes in each
    =================== ====================== =========================================

    Without `linear` or `start` every parameter starts at 1. What stands below the hooks
    is made of them, and takes and gives names with the prefix.

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

    def __check_init__(self) -> None:
        if not (self.prefix == "" or (self.prefix + "x").isidentifier()):
            raise ValueError(
                f"prefix is {self.prefix!r}; give letters, digits and underscores, "
                "such as 'b_'."
            )

    # What a subclass defines: parameters come by name, and `args` is never given

    def function(self, x: PyTree, *args: Any, **parameters: Any) -> Any:
        """The model's values at x, in `jax.numpy`, of parameters by name."""
        raise NotImplementedError(
            f"{type(self).__name__} must define function(self, x, a, b, ...)."
        )

    def candidates(self, x: PyTree, y: Values) -> Candidates:
        """Values (K,) to try for the parameters that are not linear.

        Args:
            x: ascending, (m,); a tuple of such vectors for several coordinates.
            y: data (m,), finite, without background.
        """
        return {}

    def start(self, x: PyTree, y: Values, known: Params) -> dict[str, Any]:
        """A start from data: the best candidate, with its linear parameters.

        Args:
            known: values by name that are given, and need no guess.
        """
        return self.start_beside(alone(x, y), known)

    def start_beside(self, rest: Remainder, known: Params) -> dict[str, Any]:
        """`start` of a part of a model, from what the others leave of the data."""
        if type(self).start is not Model.start:
            return self.start(rest.x, rest.orthogonal, known)
        if not self.linear:
            return self._start_without_linear()
        candidates = with_known(self.candidates(rest.x, rest.orthogonal), known)
        limits = [self.limits.get(name, FREE) for name in self.linear]
        best = best_of(self.columns, rest, candidates, limits)
        return best.others | dict(zip(self.linear, best.linear, strict=True))

    def quantities(self, *args: Any, **parameters: Any) -> dict[str, Any]:
        """What follows from the parameters: a width at half maximum, an area."""
        return {}

    def about(
        self, origin: Any, *args: Any, **parameters: Any
    ) -> dict[str, Any] | None:
        """The parameters that change when x counts from an origin; None: it cannot.

        The curve is the same: f(x, p) = f(x - origin, q), with q = p but for these.
        Far from x = 0 (dates as numbers) a fit varies q, which no cancellation spoils.
        """
        return {name: parameters[name] - origin for name in self.places} or None

    def quantities_about(
        self, origin: Any, *args: Any, **parameters: Any
    ) -> dict[str, Any]:
        """`quantities`, from the parameters for an x that counts from an origin."""
        moved = self.about(-origin, **parameters)
        return self.quantities(**(parameters | (moved or {})))

    def integral(
        self, lower: Values, upper: Values, *args: Any, **parameters: Any
    ) -> Any:
        """The integrals over bins of one coordinate, for `fit(edges=...)`."""
        raise NotImplementedError(f"{type(self).__name__} does not define integral().")

    # What it then has

    @property
    def own_names(self) -> tuple[str, ...]:
        """The parameters without the prefix."""
        return tuple(_parameters_of(type(self).function))[2:]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in order."""
        return tuple(self.prefix + name for name in self.own_names)

    @property
    def bounds(self) -> dict[str, Interval]:
        """Natural bounds of every parameter."""
        return {self.prefix + n: self.limits.get(n, FREE) for n in self.own_names}

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
        """Whether its start can be found without a program: see `_numpy/either.py`."""
        return type(self).__module__.startswith("jaxfit.models.")

    @property
    def is_pointwise(self) -> bool:
        """Whether it is known to treat each point by itself."""
        return type(self).__module__.startswith("jaxfit.models.")

    @property
    def parts(self) -> tuple["Model", ...]:
        """What it is the sum of."""
        return (self,)

    def evaluate(self, x: PyTree, parameters: Params) -> Any:
        """The values at x; parameters that belong to others are left alone."""
        return self.function(x, **self.without_prefix(parameters))

    def __call__(
        self, x: PyTree, parameters: Params | None = None, /, **named: Any
    ) -> Any:
        """The values at x, of parameters by name: a dictionary, keywords, or both."""
        parameters = {**(parameters or {}), **named}
        unknown = [name for name in parameters if name not in self.names]
        missing = [name for name in self.names if name not in parameters]
        if unknown or missing:
            wrong = {"unknown": unknown, "missing": missing}
            lists = [f"{what}: {', '.join(n)}" for what, n in wrong.items() if n]
            raise TypeError(
                f"{self.label} has the parameters {', '.join(self.names)}; "
                f"{'; '.join(lists)}."
            )
        x = jax.tree.map(jnp.asarray, x, is_leaf=is_numbers)
        return self.evaluate(x, parameters)

    def derived(self, parameters: Params, origin: Any = None) -> dict[str, Any]:
        """Derived quantities by name, with the prefix.

        Args:
            origin: where the x counts from to which the parameters belong; None: 0.
        """
        parameters = self.without_prefix(parameters)
        if origin is None:
            return self.with_prefix(self.quantities(**parameters))
        return self.with_prefix(self.quantities_about(origin, **parameters))

    def moved(self, parameters: Params, origin: Any) -> dict[str, Any] | None:
        """`about` with the prefix."""
        changed = self.about(origin, **self.without_prefix(parameters))
        return None if changed is None else self.with_prefix(changed)

    def guessed_start(self, x: PyTree, y: Values, known: Params) -> dict[str, Any]:
        """`start` with the prefix, and the known values, which may be others' too."""
        return self.guessed_beside(alone(x, y), known)

    def guessed_beside(self, rest: Remainder, known: Params) -> dict[str, Any]:
        """`start_beside` with the prefix, and the known values, others' too."""
        known = self.known_of(known)
        start = self.start_beside(rest, known) | known
        return self.with_prefix(
            {name: xp.asarray(value, rest.y.dtype) for name, value in start.items()}
        )

    def columns(self, x: PyTree, **others: Any) -> list[Any]:
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
        from jaxfit.models._guess import guessed  # which is made of models

        return guessed(self, x, y)

    def __add__(self, other: Any) -> "Model":
        return _above().added(self, other)

    def __radd__(self, other: Any) -> "Model":
        return _above().added(other, self)

    def __mul__(self, other: Any) -> "Model":
        return _above().multiplied(self, other)

    def __rmul__(self, other: Any) -> "Model":
        return _above().multiplied(other, self)

    def _start_without_linear(self) -> dict[str, float]:
        """Where nothing is known of a model, as of a plain function."""
        if type(self).candidates is not Model.candidates:
            raise TypeError(
                f"{type(self).__name__} has candidates and no linear parameter, by "
                "which they are judged. Name one in `linear`, or define start()."
            )
        return dict.fromkeys(self.own_names, DEFAULT_START)

    # Prefixes

    def with_prefix(self, values: Params) -> dict[str, Any]:
        """Values by name, with the prefix before the names."""
        return {self.prefix + name: value for name, value in values.items()}

    def without_prefix(self, parameters: Params) -> dict[str, Any]:
        """All parameters of this model by name, without the prefix."""
        return {name: parameters[self.prefix + name] for name in self.own_names}

    def known_of(self, known: Params) -> dict[str, Any]:
        """Which parameters of this model are known, by name without the prefix."""
        names = {self.prefix + name: name for name in self.own_names}
        return {names[name]: value for name, value in known.items() if name in names}


def _above() -> Any:
    """The module of sums and products, which are models: it imports this one."""
    from jaxfit.models import _compose

    return _compose


@functools.lru_cache(maxsize=512)
def _parameters_of(function: Callable) -> Mapping[str, inspect.Parameter]:
    """The arguments of a function by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{function!r} does not tell its arguments. Write the model as "
            "f(x, a, b, ...)."
        ) from error
    for p in parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(
                f"{getattr(function, '__name__', function)} takes {p}, which names no "
                "parameter. Write the model as f(x, a, b, ...)."
            )
    return parameters


class FunctionModel(Model):
    """A plain function `f(x, a, b, ...)` as a model; defaults are starts.

    Args:
        plain: the function, in NumPy or `jax.numpy`.
    """

    plain: Callable

    def __check_init__(self) -> None:
        if not self.own_names:
            number = len(_parameters_of(self.plain))
            raise TypeError(
                f"{self.label} takes {number} argument(s); a model is "
                "f(x, a, b, ...), with at least one parameter after x."
            )

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(_parameters_of(self.plain).values())[1:]

    @property
    def own_names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self._parameters)

    @property
    def label(self) -> str:
        name = getattr(self.plain, "__name__", type(self.plain).__name__)
        return f"{name} {self.prefix.rstrip('_')}".strip()

    def function(self, x: PyTree, **parameters: Any) -> Any:
        return self.plain(x, **parameters)

    def evaluate(self, x: PyTree, parameters: Params) -> Any:
        return self.called(self.plain, self.without_prefix(parameters), x)

    def called(self, function: Callable, parameters: Params, x: PyTree) -> Any:
        """What a function like this one gives; parameters without the prefix."""
        positional, named = [], {}
        for p in self._parameters:
            if p.kind == p.KEYWORD_ONLY:
                named[p.name] = parameters[p.name]
            else:
                positional.append(parameters[p.name])
        return function(x, *positional, **named)

    @property
    def starts_from_data(self) -> bool:
        return False

    @property
    def is_pointwise(self) -> bool:
        return False

    def start(self, x: PyTree, y: Values, known: Params) -> dict[str, Any]:
        return {p.name: np.asarray(_default(p)) for p in self._parameters}


def _default(parameter: inspect.Parameter) -> float:
    """Where a parameter of a plain function starts."""
    default = parameter.default
    is_number = isinstance(default, (int, float, np.number, np.ndarray))
    return float(default) if is_number else DEFAULT_START
