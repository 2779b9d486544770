"""Many data sets that share parameters: from a fit of each by itself to one of all."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxfit._core.certificate import Status
from jaxfit._core.options import Options
from jaxfit._programs.call import Static
from jaxfit._programs.host import computed, double_precision
from jaxfit.fitting._fitted import listed
from jaxfit.fitting._guesses import start_vectors
from jaxfit.fitting._joint_programs import JointInputs, Split, joint_fit, single_names
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._priors import names_of_rows
from jaxfit.fitting._problem import Method, Problem, traced_function
from jaxfit.fitting._run import HASTY, numbers_from, numbers_in, of_varied
from jaxfit.fitting._together import Together

EXACT = 1e-8  # the least error, relative to the value, that a weight is made of


class JointNumbers(NamedTuple):
    """What was computed of data sets that share parameters."""

    numbers: Numbers  # of each
    together: Together


def shared_names(
    problem: Problem, shared: Any, starts: dict[str, Any]
) -> tuple[str, ...]:
    """The parameters that data sets share, in the model's order; checked.

    Args:
        starts: what was given as p0, by name.
    """
    asked = [shared] if isinstance(shared, str) else shared
    if not isinstance(asked, Iterable):
        raise TypeError(
            f"shared is {shared!r}; give names: {', '.join(problem.names)}."
        )
    asked = list(asked)
    if not asked:
        return ()
    for name in asked:
        if name not in problem.names:
            raise ValueError(
                f"shared names {name!r}; the parameters are {', '.join(problem.names)}."
            )
        if name not in problem.varied:
            what = "tied; share what it is tied to" if name in problem.ties else "fixed"
            raise ValueError(f"shared names {name!r}, which is {what}.")
        if np.size(starts.get(name, 0.0)) != 1:
            raise ValueError(
                f"p0[{name!r}] has the shape {np.shape(starts[name])}, and {name!r} is "
                "shared: give one number."
            )
    if set(problem.varied) <= set(asked):
        raise ValueError(
            f"shared names all that varies, {listed(list(problem.varied))}. Use `fit` "
            "with lists of x and y, which fits several data sets with one set of "
            "parameters."
        )
    return tuple(name for name in problem.varied if name in asked)


def for_sharing(problem: Problem, shared: tuple[str, ...]) -> Problem:
    """The problem, as data sets that share parameters have it.

    For x as it is where another origin would mix what is shared, and in each prior what
    is shared first: see `_priors.py`.
    """
    priors = tuple(prior.with_first(shared) for prior in problem.prior)
    problem = dataclasses.replace(problem, prior=priors)
    if problem.mixed.isdisjoint(shared):
        return problem
    return dataclasses.replace(problem, origin=None)


def joint_numbers(
    problem: Problem,
    data_sets: DataSet,
    axes: Axes,
    method: Method,
    shared: tuple[str, ...],
    *,
    progress: bool = False,
) -> JointNumbers:
    """The numbers of data sets that share parameters, and those of all.

    Each is fitted by itself first. What they share then starts at the mean of what was
    found, weighted by errors, or where p0 says; if it does of all, and the others enter
    linearly, no other start is needed.
    """
    _check_covariance(method, shared)
    counted, traced = _counted(data_sets), traced_function(problem.model)
    row = int(np.argmax(counted))
    inputs = _unstarted(problem, shared, data_sets, counted, method)
    split = inputs.split.value
    start = _given_start(inputs, data_sets)
    if start is None:
        guess = start_vectors(problem, data_sets, axes)
        apart = numbers_from(problem, data_sets, axes, guess, method, progress=progress)
        start = _start(problem, split, data_sets, guess, apart, counted)
        inputs = inputs._replace(u0=start[:, list(split.local)])
    inputs = inputs._replace(x0=start[row, list(split.shared)])
    is_hasty = data_sets.data.y.size <= HASTY
    end = computed(joint_fit, inputs, traced=traced, is_hasty=is_hasty)
    numbers = Numbers.unpacked(end.vectors, Numbers.shapes(problem, None))
    start = np.where(np.isnan(start), numbers.at_solver.x, start)
    with double_precision(traced):
        single = single_names(problem, split)
    together = Together(
        shared=shared,
        single=single,
        row=row,
        number=int(counted.sum()),
        cost=float(end.cost),
        count=int(end.count),
        dof=int(end.dof),
        status=int(end.status if counted.any() else Status.NONFINITE_START),
        nfev=int(end.nfev),
    )
    return JointNumbers(numbers._replace(start=of_varied(problem, start)), together)


def _check_covariance(method: Method, shared: tuple[str, ...]) -> None:
    """Refuse the Hessian of all data sets, which is not computed."""
    if method.is_of_rows and not method.is_sandwich:
        raise ValueError(
            f"covariance='observed' goes with single fits, and shared is {shared!r}. "
            "Leave one of the two out, or give 'gram' or 'sandwich'; `fit` with lists "
            "of x and y, and `local` names, fits few data sets with it."
        )


def _unstarted(
    problem: Problem,
    shared: tuple[str, ...],
    data_sets: DataSet,
    counted: Bool[np.ndarray, " N"],
    method: Method,
) -> JointInputs:
    """What the program is given, with any start."""
    split = Split.of(problem, shared)
    return JointInputs(
        problem=problem,
        split=Static(split),
        points=data_sets.data,
        weights=_weights(problem, shared, data_sets, counted),
        x0=np.ones(len(split.shared)),
        u0=np.ones((len(counted), len(split.local))),
        bounds=_bounds(problem, split.shared),
        local_bounds=_bounds(problem, split.local),
        method=method._replace(options=_options(method.options, problem, split)),
    )


def _counted(data_sets: DataSet) -> Bool[np.ndarray, " N"]:
    """Which data sets have a point."""
    if data_sets.valid is None:
        return np.ones(len(data_sets.data.y), bool)
    valid = np.reshape(data_sets.valid, (len(data_sets.valid), -1))
    return valid.any(axis=1)


def _weights(
    problem: Problem,
    shared: tuple[str, ...],
    data_sets: DataSet,
    counted: Bool[np.ndarray, " N"],
) -> dict[str, np.ndarray] | None:
    """The weights of all residuals; a prior of what is shared counts only once."""
    is_of_all = [name in shared for name in names_of_rows(problem.prior)]
    valid = data_sets.valid
    if valid is None and not any(is_of_all):
        return None
    if valid is None:
        valid = np.ones(np.shape(data_sets.data.y))
    weights = {"data": np.asarray(valid, float)}
    if problem.prior:
        is_first = np.arange(len(counted)) == np.argmax(counted)
        weights["prior"] = np.where(
            is_of_all, is_first[:, None], counted[:, None]
        ).astype(float)
    return weights


def _bounds(problem: Problem, places: tuple[int, ...]) -> tuple | None:
    """The bounds of some of the solver's vector; None where all are free."""
    if problem.bounds is None:
        return None
    lower, upper = (np.asarray(side)[list(places)] for side in problem.bounds)
    if not (np.isfinite(lower).any() or np.isfinite(upper).any()):
        return None
    return lower, upper


def _options(options: Options | None, problem: Problem, split: Split) -> Options:
    """The options of the joint fit, whose `x_scale` is that of what is shared."""
    whole = numbers_in(options, len(problem.varied))
    scale = whole.x_scale
    if isinstance(scale, str) or np.ndim(scale) == 0:
        return whole
    return dataclasses.replace(whole, x_scale=np.asarray(scale)[list(split.shared)])


# Where it starts


def _given_start(
    inputs: JointInputs, data_sets: DataSet
) -> Float[np.ndarray, "N n"] | None:
    """The solver's vectors, if p0 says all that matters: NaN for what does not."""
    problem, shared = inputs.problem, inputs.split.value.shared
    start = np.full((len(inputs.u0), len(problem.varied)), np.nan)
    for place in shared:
        if problem.varied[place] not in data_sets.starts:
            return None
        start[:, place] = data_sets.starts[problem.varied[place]]
    with double_precision(traced_function(problem.model)):
        return start if inputs.is_linear else None


def _start(
    problem: Problem,
    split: Split,
    data_sets: DataSet,
    guess: Float[np.ndarray, "N n"],
    apart: Numbers,
    counted: Bool[np.ndarray, " N"],
) -> Float[np.ndarray, "N n"]:
    """The solver's vectors, alike in what is shared."""
    end = apart.at_solver
    good = counted & apart.success
    finite = good & np.isfinite(end.x).all(axis=1)
    start = np.where(finite[:, None], end.x, guess)
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.diagonal(end.covariance, axis1=1, axis2=2))
    for place, name in enumerate(problem.varied):
        values, given = start[:, place], guess[:, place]
        if place in split.local:
            start[:, place] = np.where(np.isfinite(values), values, _median(values))
        elif name in data_sets.starts:
            start[:, place] = given
        else:
            known = finite & apart.determined[:, problem.names.index(name)]
            start[:, place] = _common(end.x[:, place], errors[:, place], known, given)
    return start


def _common(
    values: Float[np.ndarray, " N"],
    errors: Float[np.ndarray, " N"],
    known: Bool[np.ndarray, " N"],
    guess: Float[np.ndarray, " N"],
) -> float:
    """One value for all: the mean by errors, or a median where there are none."""
    has_error = known & np.isfinite(errors)
    if has_error.any():
        size = np.maximum(errors, EXACT * np.abs(values))[has_error]
        size = np.maximum(size, EXACT * max(size.max(), np.finfo(float).tiny))
        weights = (size.min() / size) ** 2
        return float(np.average(values[has_error], weights=weights))
    return _median(values[known] if known.any() else guess)


def _median(values: Float[np.ndarray, " k"]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else 1.0
