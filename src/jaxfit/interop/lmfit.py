"""lmfit's `Model` and `Parameters` in `fit` and `fit_batch`.

    fit(lmfit.models.GaussianModel(), x, y, p0=params)

Values, bounds and `vary` of the parameters count, expressions become ties, and
expressions for what is no parameter of the model (fwhm, height) derived quantities.
lmfit is not imported: only a user who has its objects has it.
"""

import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from jaxfit.interop._expressions import (
    Expressions,
    Tie,
    check,
    computed,
    is_known,
    names_in,
)
from jaxfit.models import FunctionModel, Model, as_model


def is_of_lmfit(thing: Any, kind: str) -> bool:
    """Whether something is an instance of a class of lmfit, or of one derived from it.

    Args:
        kind: "Model" or "Parameters".
    """
    return any(
        cls.__name__ == kind and cls.__module__.partition(".")[0] == "lmfit"
        for cls in type(thing).__mro__
    )


class Terms(NamedTuple):
    """The arguments of `fit` that lmfit's objects stand for."""

    model: Any
    p0: Any
    bounds: Any
    fixed: Any
    tie: Any


def without_lmfit(terms: Terms) -> Terms:
    """The same arguments without objects of lmfit; what stands beside them prevails."""
    model, p0, given = terms.model, terms.p0, {}
    is_model = is_of_lmfit(model, "Model")
    if not is_of_lmfit(p0, "Parameters"):
        if not is_model:
            return terms
        given = _by_name(_part(model).names, p0)
        p0 = model.make_params()
    expressions = {name: one.expr for name, one in p0.items() if one.expr}
    model = _model_of(model, p0, expressions) if is_model else as_model(model)
    counts = {*model.names}.__contains__ if is_model else _not_of(model, expressions)
    parameters = {name: one for name, one in p0.items() if counts(name)}
    ties = {
        name: Tie(name, one.min, one.max, tuple(expressions.items()))
        for name, one in parameters.items()
        if one.expr
    }
    for tie in ties.values():
        check(tie.name, expressions, [n for n in parameters if n not in ties])
    others = {name: one for name, one in parameters.items() if name not in ties}
    values = {name: float(one.value) for name, one in others.items()}
    starts = {n: value for n, value in values.items() if math.isfinite(value)} | given
    fixed = {name: starts.get(name, math.nan) for name in others if not p0[name].vary}
    bounds = {
        name: (one.min, one.max)
        for name, one in others.items()
        if name not in {**fixed, **(terms.tie or {})}
        and (math.isfinite(one.min) or math.isfinite(one.max))
    }
    return Terms(
        model=model,
        p0=starts,
        bounds=bounds | dict(terms.bounds or {}),
        fixed=fixed | _by_value(terms.fixed, starts),
        tie=ties | dict(terms.tie or {}),
    )


def _not_of(model: Model, expressions: Mapping[str, str]) -> Callable[[str], bool]:
    """Whether a parameter counts: of a model that is ours all do but derived ones."""
    return lambda name: name in model.names or name not in expressions


def _by_name(names: Sequence[str], p0: Any) -> dict[str, Any]:
    """Starts that are no `Parameters`, by name."""
    if p0 is None or isinstance(p0, Mapping):
        return dict(p0 or {})
    values = np.ravel(p0)
    if len(values) != len(names):
        raise ValueError(
            f"p0 has {len(values)} numbers; the parameters are {', '.join(names)}. "
            "A dictionary by name or lmfit's Parameters may leave some out."
        )
    return dict(zip(names, values, strict=True))


def _by_value(fixed: Any, starts: Mapping[str, Any]) -> dict[str, Any]:
    """What `fit` is told to fix, by name, with its value."""
    if fixed is None or isinstance(fixed, Mapping):
        return dict(fixed or {})
    names = [fixed] if isinstance(fixed, str) else fixed
    return {name: starts.get(name, math.nan) for name in names}


# Models


class LmfitModel(FunctionModel):
    """A model of lmfit as one of ours.

    Args:
        plain: `f(x, a, b, ...)`.
        derived_by: expressions for what follows from the parameters, by name.
    """

    derived_by: Expressions = eqx.field(default=(), static=True)

    def quantities(self, *_: Any, **parameters: Any) -> dict[str, Any]:
        return {
            name: computed(name, dict(self.derived_by), parameters)
            for name, _ in self.derived_by
        }


def _model_of(
    model: Any, parameters: Mapping[str, Any], expressions: Mapping[str, str]
) -> LmfitModel:
    """A model of lmfit as one of ours, with the parameters that its own are tied to."""
    part = _part(model)
    inputs = tuple(n for n in model.independent_vars if n not in part.defaults)
    own = part.names
    needed = {
        n for name in own if name in expressions for n in names_in(name, expressions)
    }
    more = (n for n in parameters if n in needed - {*own} and n not in expressions)
    names = (*own, *more)

    derived = tuple(
        (name, text)
        for name, text in expressions.items()
        if name not in names and is_known(name, expressions, names)
    )
    plain = _Function(model.name, part, names, inputs)
    return LmfitModel(plain, derived_by=derived)


class _Function:
    """A model of lmfit as `f(x, a, b, ...)`.

    Args:
        name: for people.
        part: the model without its numbers.
        names: of the parameters, in order.
        inputs: the names of the independent variables.
    """

    def __init__(
        self, name: str, part: Any, names: tuple[str, ...], inputs: tuple[str, ...]
    ) -> None:
        self.__name__, self.part, self.names, self.inputs = name, part, names, inputs

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature(
            [inspect.Parameter(name, kind) for name in ("x", *self.names)]
        )

    def __call__(self, x: Any, *values: Any) -> Any:
        coordinates = _coordinates(x, self.inputs)
        return self.part(coordinates, dict(zip(self.names, values, strict=True)))


def _coordinates(x: Any, names: Sequence[str]) -> dict[str, Any]:
    """The independent variables by name."""
    if isinstance(x, Mapping):
        return dict(x)
    axes = x if isinstance(x, (tuple, list)) else (x,)
    if len(axes) != len(names):
        raise ValueError(
            f"x has {len(axes)} coordinates; the model has the independent variables "
            f"{', '.join(names)}. Give x as a tuple in this order, or a dictionary."
        )
    return dict(zip(names, axes, strict=True))


class _Leaf(NamedTuple):
    """A model that is one function."""

    function: Callable
    prefix: str
    parameters: tuple[str, ...]  # the function's names of them
    inputs: tuple[str, ...]
    defaults: Mapping[str, Any]  # of inputs and of other arguments

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.prefix + name for name in self.parameters)

    def __call__(self, coordinates: Mapping[str, Any], values: Mapping) -> Any:
        inputs = {
            name: coordinates[name] for name in self.inputs if name in coordinates
        }
        own = {name: values[self.prefix + name] for name in self.parameters}
        return self.function(**{**self.defaults, **inputs, **own})


class _Both(NamedTuple):
    """Two models and what combines them."""

    operation: Callable
    left: Any  # a leaf, or two again
    right: Any

    @property
    def names(self) -> tuple[str, ...]:
        return self.left.names + self.right.names

    @property
    def defaults(self) -> dict[str, Any]:
        return {**self.left.defaults, **self.right.defaults}

    def __call__(self, coordinates: Mapping[str, Any], values: Mapping) -> Any:
        return self.operation(
            self.left(coordinates, values), self.right(coordinates, values)
        )


def _part(model: Any) -> _Leaf | _Both:
    """A model of lmfit without its numbers."""
    _check_is_plain(model)
    if hasattr(model, "left"):
        return _Both(model.op, _part(model.left), _part(model.right))
    defaults = getattr(model, "independent_vars_defvals", {})
    defaults = {n: v for n, v in defaults.items() if v is not inspect.Parameter.empty}
    function, roots = _without_conditions(model.func), model._param_root_names
    text = getattr(model, "expr", None)
    if text:  # an ExpressionModel
        roots = model.param_names
        check(model.name, {model.name: text}, [*roots, *model.independent_vars])
        function = functools.partial(_of_expression, text)
    return _Leaf(
        function=function,
        prefix=model.prefix,
        parameters=tuple(roots),  # without what make_params adds to param_names
        inputs=tuple(model.independent_vars),
        defaults=defaults | model.opts,
    )


def _check_is_plain(model: Any) -> None:
    """Refuse a class that evaluates its models in its own way."""
    for cls in type(model).__mro__:
        own = {"eval", "make_funcargs", "_residual"}.intersection(vars(cls))
        if own and cls.__module__.partition(".")[0] not in ("lmfit", "builtins"):
            raise TypeError(
                f"{cls.__name__} is a class of lmfit's models with its own "
                f"{', '.join(sorted(own))}, which is not called here. Give fit the "
                "function f(x, a, b, ...) that it evaluates."
            )


def _of_expression(text: str, **values: Any) -> Any:
    """The values of an `ExpressionModel`."""
    return computed("", {"": text}, values)


def _without_conditions(function: Callable) -> Callable:
    """The function; of lmfit's own curves one that no number decides the way of.

    They write Python's `max(tiny, sigma)`, which asks which of the two it is.
    """
    if getattr(function, "__module__", None) != "lmfit.lineshapes":
        return function
    return _curves()[function.__name__]


@functools.cache
def _curves() -> dict[str, Any]:
    """lmfit's curves with NumPy's maximum in place of Python's."""
    module = sys.modules["lmfit.lineshapes"]
    space = {**vars(module), "max": _largest, "min": _least, "not_zero": _not_zero}
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType) and name not in ("not_zero",):
            if value.__module__ == module.__name__:
                copied = types.FunctionType(value.__code__, space, name)
                copied.__defaults__ = value.__defaults__
                copied.__kwdefaults__ = value.__kwdefaults__
                space[name] = copied
    return space


def _largest(*values: Any) -> Any:
    return functools.reduce(np.maximum, values)


def _least(*values: Any) -> Any:
    return functools.reduce(np.minimum, values)


def _not_zero(value: Any) -> Any:
    """The value, at least 1e-15 in size, with its sign."""
    return np.copysign(np.maximum(1e-15, np.abs(value)), value)
