"""What is fitted, and how: a model, and what becomes of each of its parameters.

A parameter varies, is fixed at a number, or is tied to others by a function. The solver
sees one vector, of those that vary; `Problem.parameters` makes all of them from it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._core.options import Options
from jaxfit._numpy.either import xp
from jaxfit._programs.call import Static
from jaxfit._programs.host import double_precision
from jaxfit._rows.predictions import with_numbers
from jaxfit._scipy.observations import Points, in_units_of
from jaxfit.fitting._points import Observed
from jaxfit.fitting._priors import Prior, names_of_rows
from jaxfit.losses import Likelihood, Loss, Prediction
from jaxfit.models import Model
from jaxfit.models._guess import far_middle

Numeric = Array | np.ndarray
ByName = dict[str, Any]  # arrays, and numbers of NumPy's
# The parameters that vary, as the solver has them, or by name
Vector = Float[Numeric, "n *many"] | ByName


class Method(NamedTuple):
    """How a fit is done, and what its errors mean; a pytree."""

    loss: Loss | Likelihood | None
    options: Options | None
    absolute: Any  # sigma is known, and not only up to a factor
    covariance: Static  # "gram", "observed" or "sandwich"

    @property
    def is_of_rows(self) -> bool:
        """Whether errors come from the rows, and not from the inverse Gram matrix."""
        return self.covariance.value != "gram"

    @property
    def is_sandwich(self) -> bool:
        """Whether errors come from the scatter of the single residuals."""
        return self.covariance.value == "sandwich"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("model", "fixed", "ties", "lower", "upper", "prior", "origin"),
        "likelihood",
    ],
    meta_fields=["varied", "rowwise", "numbers"],
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
        prior: what is known besides the data: further residuals.
        origin: where the solver's x counts from, whose vector then holds the parameters
            for that; None: 0. All that stands here is for x as it is.
        likelihood: of the data, which may lack its number for each point.
        rowwise: "yes" where the user says that the model treats each point by itself,
            "no" where the data do not; else the model knows.
        numbers: "complex" where the data have a last axis for real and imaginary part.
    """

    model: Model
    varied: tuple[str, ...]
    fixed: dict[str, Any]
    ties: dict[str, Callable]
    lower: Any
    upper: Any
    prior: tuple[Prior, ...]
    origin: Any = None
    likelihood: Likelihood | None = None
    rowwise: str = ""  # a text, which a pytree's structure tells from all others
    numbers: str = ""

    @property
    def is_pointwise(self) -> bool:
        """Whether each point is treated by itself."""
        return self.rowwise == "yes" or (
            self.rowwise != "no" and self.model.is_pointwise
        )

    def for_data(self, seen: Observed) -> "Problem":
        """The problem of some data, by what they are."""
        if seen.likelihood is not None:
            judged = dataclasses.replace(self, likelihood=seen.likelihood)
            return judged.for_data(seen._replace(likelihood=None))
        if seen.is_complex:
            return dataclasses.replace(self, rowwise="no", numbers="complex")
        if seen.sigma_x is not None:
            return dataclasses.replace(self, rowwise="yes")
        is_coupled = seen.is_correlated or seen.shapes is not None
        return dataclasses.replace(self, rowwise="no") if is_coupled else self

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
        """The bounds of the solver's vector."""
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

    def about_origin(self, x: Vector) -> ByName:
        """All parameters by name, in the model's order, for x from the origin."""
        values = x if isinstance(x, dict) else dict(zip(self.varied, x, strict=True))
        dtype = _dtype(values)
        fixed = self.counted(self.fixed)
        values = values | {name: xp.asarray(v, dtype) for name, v in fixed.items()}
        values = _tied(self.ties, values)
        return {name: values[name] for name in self.names}

    def parameters(self, x: Vector) -> ByName:
        """All parameters by name, in the model's order."""
        values = self.about_origin(x)
        if self.origin is None:
            return values
        dtype = _dtype(values)
        fixed = {name: xp.asarray(v, dtype) for name, v in self.fixed.items()}
        return values | (self.model.moved(values, -self.origin) or {}) | fixed

    def of_varied(self, x: Vector) -> Vector:
        """The parameters that vary, from the solver's vector."""
        if self.origin is None:
            return x
        parameters = self.parameters(x)
        return xp.stack([parameters[name] for name in self.varied])

    def at_solver(self, x: Float[Numeric, " n"]) -> Float[Numeric, " n"]:
        """The solver's vector, from the parameters that vary: `of_varied` undone."""
        if self.origin is None:
            return x
        values = dict(zip(self.varied, x, strict=True))
        fixed = {name: xp.asarray(v, x.dtype) for name, v in self.fixed.items()}
        changed = self.model.moved(values | fixed, self.origin) or {}
        return xp.stack([changed.get(name, v) for name, v in values.items()])

    def ties_hold(self, x: Vector) -> Bool[Array, ""]:
        """Whether what is tied lies within the model's bounds, as all else does."""
        parameters, limits = self.parameters(x), self.model.bounds
        hold = jnp.array(True)
        for name in self.ties:
            lower, upper = limits[name]
            hold &= (parameters[name] >= lower) & (parameters[name] <= upper)
        return hold

    def derived(self, x: Vector) -> dict[str, Array]:
        """Derived quantities by name."""
        return self.model.derived(self.about_origin(x), self.origin)

    def values(
        self, x: Vector, at: PyTree, shape: tuple[int, ...]
    ) -> Float[Numeric, "..."]:
        """The model at the points `at`, in the shape of the data."""
        return self.values_about(x, self.points(at), shape)

    def values_about(
        self, x: Vector, points: PyTree, shape: tuple[int, ...]
    ) -> Float[Numeric, "..."]:
        """`values` at points from the origin."""
        values = self.model.evaluate(points, self.about_origin(x))
        values = xp.asarray(values)
        own = shape[:-1] if self.numbers == "complex" else shape
        if np.broadcast_shapes(values.shape, own) != own:
            raise ValueError(
                f"The model {self.model.label} has values of the shape {values.shape}; "
                f"the data have {own}. Give x of the shape of y, or for several "
                "coordinates a tuple of arrays."
            )
        if self.numbers == "complex":
            values = xp.stack([xp.real(values), xp.imag(values)], axis=-1)
        elif np.issubdtype(values.dtype, np.complexfloating):
            raise TypeError(
                f"The model {self.model.label} has complex values, and y is real. "
                "Give complex y, or a model that returns real numbers: jnp.abs(z)."
            )
        return xp.broadcast_to(values, shape)

    def residuals(self, x: Vector, data: Points) -> dict[str, Any]:
        """(model - y) / sigma, and those of each prior.

        For a covariance L Lᵀ of y that is L⁻¹ (model - y), and sigma is L. With a
        likelihood it is a `Prediction` of y, and sigma its number for each point.
        """
        values = self.values(x, data.x, data.y.shape)
        residuals = {"data": self._rows(values, data)}
        if self.prior:
            residuals["prior"] = self.of_priors(x)
        return residuals

    def _rows(self, values: Numeric, data: Points) -> Any:
        sigma = data.sigma
        if self.likelihood is not None:
            return Prediction(values, data.y, with_numbers(self.likelihood, sigma))
        rows = values - data.y
        if sigma is None:
            return rows
        return in_units_of(sigma, rows) if sigma.ndim > rows.ndim else rows / sigma

    def of_priors(self, x: Vector) -> Numeric:
        """The residuals of all priors, one for each parameter that they name."""
        parameters = self.parameters(x)
        return jnp.stack(
            [row for prior in self.prior for row in prior.residuals(parameters)]
        )

    @property
    def rows_of_priors(self) -> int:
        """The number of their residuals."""
        return len(names_of_rows(self.prior))


def traced_function(model: Model) -> Any:
    """What an error about tracing should name: the user's function, or the model."""
    return getattr(model, "plain", model)


def once_for_a_model(function: Callable) -> Callable:
    """The function, which then remembers what it gave for a model."""
    remembering = functools.lru_cache(maxsize=64)(function)

    @functools.wraps(function)
    def of(model: Model) -> Any:
        try:
            return remembering(model)
        except TypeError:  # a model that holds arrays has no hash
            return function(model)

    return of


@once_for_a_model
def _derived_names(model: Model) -> tuple[str, ...]:
    names: list[str] = []

    def note(parameters: dict[str, Any]) -> None:
        names.extend(model.derived(parameters))  # a pytree would sort them

    jax.eval_shape(note, dict.fromkeys(model.names, 1.0))
    return tuple(names)


def _dtype(values: ByName) -> Any:
    """The dtype of parameters."""
    return next(iter(values.values())).dtype


def _tied(ties: Mapping[str, Callable], free: Mapping[str, Any]) -> ByName:
    """The free parameters and those tied to them, in any order."""
    known, waiting = dict(free), dict(ties)
    while waiting:
        done = {}
        for name, tie in waiting.items():
            try:
                done[name] = xp.asarray(tie(known), _dtype(known))
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


# Where x counts from


def from_middle(problem: Problem, starts: Mapping[str, Any], x: PyTree) -> Problem:
    """The problem with the middle of the data as its origin, where x = 0 is far off.

    Only if the whole model can be moved, and nothing is asked of a parameter that
    changes with others: that it be fixed, tied or bounded (but by zero, where only its
    scale changes), or start at a value without those of all others.
    """
    origin, names = far_middle(x), problem.names
    if origin is None or problem.ties:
        return problem
    mixed = problem.mixed
    partly = mixed & set(starts) and not {*starts, *problem.fixed} >= set(names)
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


def starts_about(problem: Problem, starts: Mapping[str, Any]) -> dict[str, Any]:
    """Starts by name, for x from the problem's origin."""
    values = {**problem.fixed, **starts}
    if problem.origin is None or not values.keys() >= set(problem.names):
        return problem.counted(starts)
    with double_precision(problem.model):
        changed = problem.model.moved(values, problem.origin) or {}
        return {n: np.asarray(changed.get(n, v)) for n, v in starts.items()}
