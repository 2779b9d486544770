"""An astropy model as a function of its free parameters, without its numbers."""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from astropy.modeling.core import CompoundModel, Model

OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}


class Residuals(NamedTuple):
    """The residuals of a model as a function of its free parameters, in NumPy.

    It depends on the structure of the model, and no longer on its numbers: so a model
    of the same structure finds the program that is compiled already.
    """

    curve: Callable  # (coordinates..., parameters...) -> values
    names: tuple[str, ...]  # of the parameters
    shapes: tuple[tuple[int, ...], ...]
    is_free: tuple[bool, ...]
    ties: tuple[tuple[str, Callable], ...]
    members: Mapping[int | str, Mapping[str, str]]  # see `_Values`

    @classmethod
    def of(cls, model: Model) -> "Residuals":
        """Those of a model."""
        names = tuple(model.param_names)
        ties = tuple((name, model.tied[name]) for name in names if model.tied[name])
        return cls(
            curve=_curve(model).evaluate,
            names=names,
            shapes=tuple(np.shape(getattr(model, name).value) for name in names),
            is_free=tuple(not (model.fixed[n] or model.tied[n]) for n in names),
            ties=ties,
            members=_members(model) if ties else {},
        )

    def __call__(self, points: Mapping[str, Any], *free: Any) -> Any:
        values, place, moved = {}, 0, 0
        for name, shape, is_free in zip(
            self.names, self.shapes, self.is_free, strict=True
        ):
            size = int(np.prod(shape))
            value = points["parameters"][place : place + size]
            if is_free:
                value, moved = np.stack(free[moved : moved + size]), moved + size
            values[name], place = value.reshape(shape), place + size
        for name, tie in self.ties:
            values[name] = tie(_Values(values, self.members))
        computed = self.curve(*points["coordinates"], *values.values())
        residuals = computed - points["observed"]
        weights = points["weights"]
        return residuals if weights is None else weights * residuals


# Ties


class _Values:
    """What a function that ties a parameter sees of a model: the values by name.

    Args:
        values: by name.
        members: the names of the parameters of each part of a compound model, by the
            part's number or name, and the name that the part has for them.
    """

    def __init__(self, values: Mapping[str, Any], members: Mapping) -> None:
        self._values, self._members = values, members

    def __getattr__(self, name: str) -> "_Value":
        if name not in self._values:
            raise AttributeError(
                f"A function that ties a parameter asks for {name!r}; it may ask the "
                f"model for its parameters, {', '.join(self._values)}, and for its "
                "parts by number or name."
            )
        return _Value(self._values[name])

    def __getitem__(self, part: int | str) -> "_Values":
        if part not in self._members:
            raise KeyError(f"The model has no part {part!r}: {list(self._members)}.")
        names = self._members[part]
        return _Values({own: self._values[name] for own, name in names.items()}, {})


class _Value(np.lib.mixins.NDArrayOperatorsMixin):
    """A parameter as a function that ties another sees it: a number with `value`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any
    ) -> Any:
        plain = [one.value if isinstance(one, _Value) else one for one in inputs]
        return getattr(ufunc, method)(*plain, **keywords)

    def __array__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
        return np.asarray(self.value, *arguments, **keywords)

    def __float__(self) -> float:
        return float(self.value)


def _members(model: Model) -> dict[int | str, dict[str, str]]:
    """The parameters of each part of a compound model; see `_Values`."""
    members: dict[int | str, dict[str, str]] = {}
    if not isinstance(model, CompoundModel):
        return members
    names = iter(model.param_names)
    for number, label in enumerate(model.submodel_names):
        own = {name: next(names) for name in model[number].param_names}
        members |= {number: own, number - model.n_submodels: own, label: own}
    return members


# Curves


class _Curve(NamedTuple):
    """A model as a function (inputs..., parameters...) -> values."""

    evaluate: Callable
    inputs: int
    parameters: int


def _curve(model: Model) -> _Curve:
    """A model without its numbers: of plain functions, as far as may be."""
    sizes = model.n_inputs, len(model.param_names)
    if not isinstance(model, CompoundModel):
        return _Curve(_function_of(model), *sizes)
    if model.op == "fix_inputs":
        inner = model.left.inputs
        fixed = {inner.index(k) if k in inner else k: v for k, v in model.right.items()}
        combined: Callable = functools.partial(_fixed, _curve(model.left), fixed)
    else:
        sides = _curve(model.left), _curve(model.right)
        if model.op in OPERATORS:
            combined = functools.partial(_combined, OPERATORS[model.op], *sides)
        elif model.op in ("|", "&"):
            combined = functools.partial(_after if model.op == "|" else _beside, *sides)
        else:
            combined = model.evaluate
    return _Curve(combined, *sizes)


def _function_of(model: Model) -> Callable:
    """How a model that is not compound is evaluated."""
    kind = type(model)
    if isinstance(
        inspect.getattr_static(kind, "evaluate"), (staticmethod, classmethod)
    ):
        return kind.evaluate
    bare = model.copy()  # with settings, such as a degree, and without numbers
    for name in bare.param_names:
        parameter = getattr(bare, name)
        parameter.tied, parameter.fixed, parameter.bounds = False, False, (None, None)
    bare.parameters = np.full_like(bare.parameters, np.nan)
    return bare.evaluate


def _combined(operation: Callable, left: _Curve, right: _Curve, *args: Any) -> Any:
    """left + right, and so on."""
    inputs, own, others = _parted(args, left.inputs, left.parameters)
    values = left.evaluate(*inputs, *own), right.evaluate(*inputs, *others)
    if isinstance(values[0], tuple):
        return tuple(map(operation, *values))
    return operation(*values)


def _after(left: _Curve, right: _Curve, *args: Any) -> Any:
    """left | right: the first gives what the second takes."""
    inputs, own, others = _parted(args, left.inputs, left.parameters)
    return right.evaluate(*_as_tuple(left.evaluate(*inputs, *own)), *others)


def _beside(left: _Curve, right: _Curve, *args: Any) -> tuple:
    """left & right: each has inputs and outputs of its own."""
    inputs, own, others = _parted(args, left.inputs + right.inputs, left.parameters)
    first = left.evaluate(*inputs[: left.inputs], *own)
    second = right.evaluate(*inputs[left.inputs :], *others)
    return _as_tuple(first) + _as_tuple(second)


def _fixed(curve: _Curve, fixed: Mapping[int, Any], *args: Any) -> Any:
    """A model some of whose inputs are numbers."""
    rest = iter(args)
    inputs = [fixed[i] if i in fixed else next(rest) for i in range(curve.inputs)]
    return curve.evaluate(*inputs, *rest)


def _parted(args: Sequence, inputs: int, parameters: int) -> tuple[Any, Any, Any]:
    """The inputs, the parameters of the left model, and those of the right one."""
    middle = inputs + parameters
    return args[:inputs], args[inputs:middle], args[middle:]


def _as_tuple(values: Any) -> tuple:
    return values if isinstance(values, tuple) else (values,)
