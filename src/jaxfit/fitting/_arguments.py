"""What is fitted, from the arguments of `fit` as people write them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxfit._core.options import Options
from jaxfit._programs.call import Static
from jaxfit._scipy.arguments import real_array
from jaxfit.fitting._likelihood import as_loss
from jaxfit.fitting._priors import priors_from
from jaxfit.fitting._problem import Method, Problem, once_for_a_model
from jaxfit.losses import Likelihood, Loss
from jaxfit.models import Model

Interval = tuple[float, float]

COVARIANCES = {kind: Static(kind) for kind in ("gram", "observed", "sandwich")}


class ProblemAndStarts(NamedTuple):
    """What is fitted, and the starts that the user gave, by name."""

    problem: Problem
    starts: dict[str, Any]


def problem_from(
    model: Model,
    *,
    p0: Any = None,
    bounds: Any = None,
    fixed: Any = None,
    tie: Mapping[str, Any] | None = None,
    prior: Mapping[Any, Any] | None = None,
    rowwise: Any = False,
) -> ProblemAndStarts:
    """The problem, and the starts; arguments as in `fit`, and checked here."""
    starts = {} if p0 is None else _starts(model.names, p0)
    if bounds is fixed is tie is prior is None:
        problem = _plain(model)
    else:
        problem = _with_terms(
            model, starts, bounds=bounds, fixed=fixed, tie=tie, prior=prior
        )
    if rowwise:
        problem = dataclasses.replace(problem, rowwise="yes")
    starts = {name: starts[name] for name in problem.varied if name in starts}
    _check_inside(problem, starts)
    return ProblemAndStarts(problem, starts)


@once_for_a_model
def _plain(model: Model) -> Problem:
    """A model with nothing but its own bounds."""
    return _with_terms(model, {})


def _with_terms(
    model: Model,
    starts: Mapping[str, Any],
    *,
    bounds: Any = None,
    fixed: Any = None,
    tie: Mapping[str, Any] | None = None,
    prior: Mapping[Any, Any] | None = None,
) -> Problem:
    """The model with what is asked of its parameters."""
    names = model.names
    values = _fixed_values(names, fixed, starts)
    ties = _ties(names, tie, values)
    intervals = _intervals(names, bounds, ties)
    for name, (lower, upper) in intervals.items():
        if lower == upper:
            values.setdefault(name, lower)
    limits = model.bounds | intervals
    _check_fixed(values, limits)
    varied = tuple(n for n in names if n not in values and n not in ties)
    if not varied:
        raise ValueError("Every parameter is fixed or tied; let at least one vary.")
    lower, upper = (np.array([limits[n][i] for n in varied], float) for i in (0, 1))
    is_free = not (np.isfinite(lower).any() or np.isfinite(upper).any())
    return Problem(
        model=model,
        varied=varied,
        fixed={name: np.asarray(value) for name, value in values.items()},
        ties=ties,
        lower=None if is_free else lower,
        upper=None if is_free else upper,
        prior=priors_from(names, prior),
    )


def method_from(
    loss: Loss | Likelihood | None,
    options: Options | None,
    absolute_sigma: bool,
    covariance: str | None,
) -> Method:
    """How it is fitted; arguments as in `fit`."""
    if covariance is not None and covariance not in COVARIANCES:
        raise ValueError(
            f"covariance is {covariance!r}; give 'gram', 'observed', 'sandwich' or "
            "None."
        )
    usual = "sandwich" if isinstance(loss, Loss) else "gram"
    return Method(
        loss=as_loss(loss),
        options=options,
        absolute=np.bool_(absolute_sigma or isinstance(loss, Likelihood)),
        covariance=COVARIANCES[covariance or usual],
    )


def check_derivatives(method: Method, is_on_host: bool) -> None:
    """Refuse second derivatives of a model that has but differences."""
    if is_on_host and method.covariance.value == "observed":
        raise ValueError(
            "covariance='observed' is made of second derivatives, and the model is a "
            "function that NumPy computes on the host, by differences. Write it in "
            "jax.numpy, or in NumPy so that it can be traced; or give 'gram' or "
            "'sandwich'."
        )


def by_name(names: Sequence[str], values: Any, what: str) -> dict[str, Any]:
    """A dictionary by names of parameters, checked."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{what} is {values!r}; give a dictionary by name: {', '.join(names)}."
        )
    for name in values:
        if name not in names:
            raise ValueError(
                f"{what} names {name!r}; the parameters are {', '.join(names)}."
            )
    return dict(values)


# Single arguments


def _starts(names: Sequence[str], p0: Any) -> dict[str, np.ndarray]:
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
    return {name: _finite(f"p0[{name!r}]", value) for name, value in starts.items()}


def _check_inside(problem: Problem, starts: Mapping[str, Any]) -> None:
    """Refuse starts outside their bounds."""
    if problem.lower is None:
        return
    limits = zip(problem.varied, problem.lower, problem.upper, strict=True)
    for name, lower, upper in limits:
        if name not in starts:
            continue
        start = np.asarray(starts[name])
        outside = ~((start >= lower) & (start <= upper))
        if outside.any():
            which = start if start.ndim == 0 else f"{start[outside].flat[0]} somewhere"
            raise ValueError(
                f"p0[{name!r}] is {which}, outside its bounds ({lower}, {upper})."
            )


def _fixed_values(
    names: Sequence[str], fixed: Any, starts: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of the fixed parameters: as written, or those of p0."""
    if isinstance(fixed, str):
        fixed = [fixed]
    if fixed is None or isinstance(fixed, Mapping):
        values = by_name(names, fixed, "fixed")
        return {n: _finite(f"fixed[{n!r}]", v) for n, v in values.items()}
    by_name(names, dict.fromkeys(fixed), "fixed")
    missing = [name for name in fixed if name not in starts]
    if missing:
        raise ValueError(
            f"fixed names {', '.join(missing)} without a value; write "
            f"fixed={{{missing[0]!r}: 1.0}}, or give it in p0."
        )
    return {name: starts[name] for name in fixed}


def _ties(
    names: Sequence[str], tie: Mapping[str, Any] | None, fixed: Mapping[str, Any]
) -> dict[str, Callable]:
    """The functions that tie, by the name of what they give."""
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
        if name in fixed:
            raise ValueError(f"{name!r} is both fixed and tied; choose one.")
    return ties


def _value_of(name: str, parameters: Mapping[str, Any]) -> Any:
    """The tie that makes a parameter equal to another."""
    return parameters[name]


def _intervals(
    names: Sequence[str],
    bounds: Any,
    ties: Mapping[str, Callable],
) -> dict[str, Interval]:
    """The bounds that are given, by name."""
    intervals = {
        name: _interval(name, pair)
        for name, pair in by_name(names, bounds, "bounds").items()
    }
    for name in intervals:
        if name in ties:
            raise ValueError(f"{name!r} is tied, and can have no bounds of its own.")
    return intervals


def _check_fixed(fixed: Mapping[str, Any], limits: Mapping[str, Interval]) -> None:
    """Refuse what is fixed outside its bounds."""
    for name, value in fixed.items():
        lower, upper = limits[name]
        if np.any(np.asarray(value) < lower) or np.any(np.asarray(value) > upper):
            raise ValueError(
                f"{name} is fixed at {value}, outside its bounds ({lower}, {upper})."
            )


def _finite(what: str, value: Any) -> np.ndarray:
    """Finite real numbers."""
    numbers = real_array(value, what)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{what} is {numbers}; give finite real numbers.")
    return numbers


def _interval(name: str, pair: Any) -> Interval:
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
