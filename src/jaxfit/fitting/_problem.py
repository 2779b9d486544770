"""What is fitted: a model, and what becomes of each of its parameters.

A parameter varies, is fixed at a number, or is tied to others by a function. The solver
sees one vector, of those that vary; `Problem.parameters` makes all of them from it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._programs.host import double_precision
from jaxfit._scipy.arguments import real_array
from jaxfit._scipy.observations import Points
from jaxfit.models import Model
from jaxfit.models._either import xp
from jaxfit.models._guess import far_middle

Bounds = Mapping[str, Any]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "fixed", "ties", "lower", "upper", "prior", "origin"],
    meta_fields=["varied", "rowwise"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model with the lot of its parameters; a pytree.

    Attributes:
        model: the model.
        varied: the parameters that the solver varies, in the model's order.
        fixed: the values of those that are fixed.
        ties: functions of all other parameters, by the name of the one they give.
        lower, upper: bounds of the varied parameters, (n,); None: all are free.
        prior: (mean, standard deviation) by name: further residuals.
        origin: where the solver's x counts from, whose vector then holds the parameters
            for that; None: 0. All that stands here is for x as it is.
        rowwise: "yes" where the user says that the model treats each point by itself.
    """

    model: Model
    varied: tuple[str, ...]
    fixed: dict[str, Any]
    ties: dict[str, Callable]
    lower: Any
    upper: Any
    prior: dict[str, tuple[Any, Any]]
    origin: Any = None
    rowwise: str = ""  # a text, which a pytree's structure tells from all others

    @property
    def is_pointwise(self) -> bool:
        """Whether each point is treated by itself."""
        return bool(self.rowwise) or self.model.is_pointwise

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the model's order."""
        return self.model.names

    @functools.cached_property
    def derived_names(self) -> tuple[str, ...]:
        """The names of derived quantities."""
        return _derived_names(self.model)

    @property
    def bounds(self) -> tuple | None:
        """For the solver."""
        if self.lower is None or self.origin is None:
            return None if self.lower is None else (self.lower, self.upper)
        is_place = [name in self.model.places for name in self.varied]
        shift = np.array(is_place, float) * self.origin
        return self.lower - shift, self.upper - shift

    @property
    def function(self) -> Callable:
        """`residuals` for the solver: a pytree, as this is."""
        return jax.tree_util.Partial(Problem.residuals, self)

    @property
    def mixed(self) -> set[str]:
        """The parameters that another origin changes by what others are."""
        changed = self.model.moved(dict.fromkeys(self.names, 1.0), 1.0) or {}
        return {*changed} - {*self.model.places}

    def points(self, x: PyTree) -> PyTree:
        """Coordinates, counted from the origin."""
        return x if self.origin is None else x - self.origin

    def counted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by name, those of places counted from the origin."""
        if self.origin is None:
            return dict(values)
        places = self.model.places
        return {n: v - self.origin if n in places else v for n, v in values.items()}

    def about_origin(self, x: Float[Array, " n"]) -> dict[str, Array]:
        """All parameters by name, in the model's order, for x from the origin."""
        known = dict(zip(self.varied, x, strict=True))
        fixed = self.counted(self.fixed)
        known |= {name: xp.asarray(v, x.dtype) for name, v in fixed.items()}
        known = _tied(self.ties, known)
        return {name: known[name] for name in self.names}

    def parameters(self, x: Float[Array, " n"]) -> dict[str, Array]:
        """All parameters by name, in the model's order."""
        known = self.about_origin(x)
        if self.origin is None:
            return known
        fixed = {name: xp.asarray(v, x.dtype) for name, v in self.fixed.items()}
        return known | (self.model.moved(known, -self.origin) or {}) | fixed

    def of_varied(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The parameters that vary, from the solver's vector."""
        if self.origin is None:
            return x
        parameters = self.parameters(x)
        return xp.stack([parameters[name] for name in self.varied])

    def ties_hold(self, x: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether what is tied lies within the model's bounds, as all else does."""
        parameters, limits = self.parameters(x), self.model.bounds
        held = jnp.array(True)
        for name in self.ties:
            lower, upper = limits[name]
            held &= (parameters[name] >= lower) & (parameters[name] <= upper)
        return held

    def derived(self, x: Float[Array, " n"]) -> dict[str, Array]:
        """Derived quantities by name."""
        return self.model.derived(self.about_origin(x), self.origin)

    def values(self, x: Float[Array, " n"], at: PyTree, shape: tuple) -> Array:
        """The model at the points `at`, in the shape of the data."""
        values = self.model.evaluate(self.points(at), self.about_origin(x))
        values = xp.asarray(values)
        if np.broadcast_shapes(values.shape, shape) != shape:
            raise ValueError(
                f"The model {self.model.label} has values of the shape {values.shape}; "
                f"the data have {shape}. Give x of the shape of y, or for several "
                "coordinates a tuple of arrays."
            )
        return xp.broadcast_to(values, shape)

    def residuals(self, x: Float[Array, " n"], data: Points) -> dict[str, Array]:
        """(model - y) / sigma, and (parameter - mean) / deviation for each prior."""
        rows = self.values(x, data.x, data.y.shape) - data.y
        found = {"data": rows if data.sigma is None else rows / data.sigma}
        if self.prior:
            parameters = self.parameters(x)
            found["prior"] = jnp.stack(
                [
                    (parameters[name] - mean) / deviation
                    for name, (mean, deviation) in self.prior.items()
                ]
            )
        return found


def _once_for_a_model(function: Callable) -> Callable:
    """The function, which then remembers what it gave for a model."""
    remembering = functools.lru_cache(maxsize=64)(function)

    @functools.wraps(function)
    def of(model: Model) -> Any:
        try:
            return remembering(model)
        except TypeError:  # a model that holds arrays has no hash
            return function(model)

    return of


@_once_for_a_model
def _derived_names(model: Model) -> tuple[str, ...]:
    names: list[str] = []

    def note(parameters):
        names.extend(model.derived(parameters))  # a pytree would sort them

    jax.eval_shape(note, dict.fromkeys(model.names, 1.0))
    return tuple(names)


def _tied(ties: Mapping[str, Callable], known: dict[str, Array]) -> dict[str, Array]:
    """The known parameters and those tied to them, in any order."""
    waiting = dict(ties)
    while waiting:
        done = {}
        for name, tie in waiting.items():
            try:
                done[name] = xp.asarray(tie(known), next(iter(known.values())).dtype)
            except KeyError as error:
                if error.args[0] not in waiting:
                    raise ValueError(
                        f"The tie of {name!r} asks for {error.args[0]!r}; the "
                        f"parameters are {', '.join([*known, *waiting])}."
                    ) from error
        if not done:
            raise ValueError(f"Ties go round in a circle: {', '.join(waiting)}.")
        known = known | done
        waiting = {name: tie for name, tie in waiting.items() if name not in done}
    return known


# From the user's arguments


def pose(
    model: Model,
    *,
    p0: Any = None,
    bounds: Bounds | None = None,
    fixed: Any = None,
    tie: Mapping[str, Any] | None = None,
    prior: Mapping[str, tuple[float, float]] | None = None,
    rowwise: bool = False,
) -> tuple[Problem, dict[str, Any]]:
    """The problem, and the starts that are given, by name; arguments as in `fit`."""
    starts = {} if p0 is None else _starts(model.names, p0)
    if bounds is fixed is tie is prior is None:
        return dataclasses.replace(_plain(model), rowwise="yes" * rowwise), starts
    names = model.names
    held = _held(names, fixed, starts)
    ties = {
        name: functools.partial(_value_of, tied) if isinstance(tied, str) else tied
        for name, tied in by_name(names, tie, "tie").items()
    }
    for name, function in ties.items():
        if not callable(function):
            raise TypeError(
                f"tie[{name!r}] is {function!r}; give a function of the parameters, "
                "such as lambda p: p['a_width'], or the name of one."
            )
        if name in held:
            raise ValueError(f"{name!r} is both fixed and tied; choose one.")
    limits = model.bounds | {
        name: _interval(name, pair)
        for name, pair in by_name(names, bounds, "bounds").items()
    }
    for name in [*by_name(names, bounds, "bounds")]:
        if name in ties:
            raise ValueError(f"{name!r} is tied, and can have no bounds of its own.")
        if limits[name][0] == limits[name][1]:
            held.setdefault(name, limits[name][0])
    for name, value in held.items():
        lower, upper = limits[name]
        if np.any(np.asarray(value) < lower) or np.any(np.asarray(value) > upper):
            raise ValueError(
                f"{name} is fixed at {value}, outside its bounds ({lower}, {upper})."
            )
    held = {name: np.asarray(value) for name, value in held.items()}
    beliefs = {
        name: _belief(name, pair)
        for name, pair in by_name(names, prior, "prior").items()
    }
    problem = _problem(model, held, ties, limits, beliefs, rowwise)
    return problem, {n: starts[n] for n in problem.varied if n in starts}


def _problem(model, held, ties, limits, beliefs, rowwise=False) -> Problem:
    varied = tuple(n for n in model.names if n not in held and n not in ties)
    if not varied:
        raise ValueError("Every parameter is fixed or tied; let at least one vary.")
    lower, upper = (np.array([limits[n][i] for n in varied], float) for i in (0, 1))
    is_free = not (np.isfinite(lower).any() or np.isfinite(upper).any())
    return Problem(
        model=model,
        varied=varied,
        fixed=held,
        ties=ties,
        lower=None if is_free else lower,
        upper=None if is_free else upper,
        prior=beliefs,
        rowwise="yes" * rowwise,
    )


@_once_for_a_model
def _plain(model: Model) -> Problem:
    """A model with nothing but its own bounds."""
    return _problem(model, {}, {}, model.bounds, {})


def from_middle(problem: Problem, given: Mapping[str, Any], x: PyTree) -> Problem:
    """The problem with the middle of the data as its origin, where x = 0 is far off.

    Only if the whole model can be moved, and nothing is asked of a parameter that
    changes with others: that it be fixed, tied or bounded (but by zero, where only its
    scale changes), or start at a value without those of all others.
    """
    origin, names = far_middle(x), problem.names
    if origin is None or problem.ties:
        return problem
    mixed = problem.mixed
    partly = mixed & set(given) and not {*given, *problem.fixed} >= set(names)
    if not mixed or partly or mixed & {*problem.fixed, *_bounded(problem)}:
        return problem
    return dataclasses.replace(problem, origin=origin)


def _bounded(problem: Problem) -> list[str]:
    """The parameters whose bounds another origin would change."""
    if problem.bounds is None:
        return []
    return [
        name
        for name, *pair in zip(problem.varied, *problem.bounds, strict=True)
        if not all(
            np.isinf(bound) or (bound == 0 and name in problem.model.scales)
            for bound in pair
        )
    ]


def starts_about(problem: Problem, given: Mapping[str, Any]) -> dict[str, Any]:
    """Starts that are given, for x from the problem's origin."""
    known = {**problem.fixed, **given}
    if problem.origin is None or not known.keys() >= set(problem.names):
        return problem.counted(given)
    with double_precision(problem.model):
        changed = problem.model.moved(known, problem.origin) or {}
        return {n: np.asarray(changed.get(n, v)) for n, v in given.items()}


def by_name(names: Sequence[str], given: Any, what: str) -> dict[str, Any]:
    """A dictionary by names of parameters, checked."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{what} is {given!r}; give a dictionary by name: {', '.join(names)}."
        )
    for name in given:
        if name not in names:
            raise ValueError(
                f"{what} names {name!r}; the parameters are {', '.join(names)}."
            )
    return dict(given)


def _starts(names, p0) -> dict[str, Any]:
    """Starts by name from a dictionary or a sequence."""
    if p0 is None or isinstance(p0, Mapping):
        starts = by_name(names, p0, "p0")
    else:
        values = list(p0) if isinstance(p0, Iterable) else [p0]
        if len(values) != len(names):
            raise ValueError(
                f"p0 has {len(values)} numbers; the parameters are {', '.join(names)}. "
                "A dictionary by name may leave out those that are to be guessed."
            )
        starts = dict(zip(names, values, strict=True))
    return {name: _numbers(f"p0[{name!r}]", value) for name, value in starts.items()}


def _held(names, fixed, starts) -> dict[str, Any]:
    """Values of the fixed parameters: given, or those of p0."""
    if isinstance(fixed, str):
        fixed = [fixed]
    if fixed is None or isinstance(fixed, Mapping):
        held = by_name(names, fixed, "fixed")
        return {n: _numbers(f"fixed[{n!r}]", v) for n, v in held.items()}
    by_name(names, dict.fromkeys(fixed), "fixed")
    missing = [name for name in fixed if name not in starts]
    if missing:
        raise ValueError(
            f"fixed names {', '.join(missing)} without a value; write "
            f"fixed={{{missing[0]!r}: 1.0}}, or give it in p0."
        )
    return {name: starts[name] for name in fixed}


def _numbers(what: str, value: Any) -> np.ndarray:
    value = real_array(value, what)
    if not np.isfinite(value).all():
        raise ValueError(f"{what} is {value}; give finite real numbers.")
    return value


def _interval(name, pair) -> tuple[float, float]:
    try:
        lower, upper = pair
        lower = -math.inf if lower is None else real_array(lower, "lower").item()
        upper = math.inf if upper is None else real_array(upper, "upper").item()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"bounds[{name!r}] is {pair!r}; give a pair (lower, upper), None for none."
        ) from error
    if not lower <= upper:
        raise ValueError(
            f"bounds[{name!r}] is {pair!r}: the lower bound is above the upper one."
        )
    return lower, upper


def _belief(name, pair) -> tuple[np.ndarray, np.ndarray]:
    try:
        mean, deviation = (real_array(value, "it").reshape(()) for value in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"prior[{name!r}] is {pair!r}; give a pair (mean, standard deviation)."
        ) from error
    if not (np.isfinite(mean) and 0 < deviation < np.inf):
        raise ValueError(
            f"prior[{name!r}] is {pair!r}; the mean must be finite and the standard "
            "deviation positive."
        )
    return mean, deviation


def _value_of(name: str, parameters: Mapping[str, Array]) -> Array:
    """The tie that makes a parameter equal to another."""
    return parameters[name]
