"""`fit_batch`: one model and many data sets, from start to result."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, PyTree

from jaxfit._core.auto_scale import has_own_scale
from jaxfit._core.certificate import Status
from jaxfit._core.options import Options, check_known_scale, check_loss
from jaxfit._scipy.arguments import complex_points, coordinates, real_points
from jaxfit._scipy.observations import Points
from jaxfit.fitting._arguments import (
    check_derivatives,
    method_from,
    problem_from,
)
from jaxfit.fitting._batch_record import Labels
from jaxfit.fitting._batch_result import BatchFit
from jaxfit.fitting._bins import bins_of
from jaxfit.fitting._dates import Dated
from jaxfit.fitting._errors_in_x import (
    check_method_with_errors,
    check_not_shared,
    check_unwatched,
    with_errors_in_x,
)
from jaxfit.fitting._functions import Asked, with_functions
from jaxfit.fitting._incidental import warn_of_incidental_parameters
from jaxfit.fitting._joint_fit import for_sharing, joint_numbers, shared_names
from jaxfit.fitting._likelihood import check_exact_x, with_likelihood
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._own_scale import batch_with_own_scales, check_scale_can_be_found
from jaxfit.fitting._points import Axes, DataSet, Observed, observed
from jaxfit.fitting._problem import Method, Problem, from_middle, starts_about
from jaxfit.fitting._run import batch_numbers
from jaxfit.fitting._together import Together
from jaxfit.interop.lmfit import Terms, without_lmfit
from jaxfit.losses import Likelihood, Loss
from jaxfit.models import as_model

ON_HOST = (
    "the model is a function that NumPy computes on the host, and data sets that share "
    "parameters are fitted by compiled ones. Write it in jax.numpy, or in NumPy so "
    "that it can be traced; HostModelWarning tells why it cannot."
)


def fit_batch(
    model: Any,
    x: PyTree = None,
    Y: Any = None,
    *,
    edges: Any = None,
    sigma: Any = None,
    sigma_x: Any = None,
    p0: Any = None,
    bounds: Any = None,
    fixed: Any = None,
    loss: Loss | Likelihood | None = None,
    options: Options | None = None,
    nan_policy: str = "omit",
    tie: Mapping[str, Any] | None = None,
    prior: Mapping[Any, Any] | None = None,
    absolute_sigma: bool = False,
    covariance: str | None = None,
    shared: Any = (),
    rowwise: bool = False,
    progress: bool = False,
    host: bool = False,
) -> BatchFit:
    """Fit one model to many data sets: pixels, voxels, wells, spectra.

    Every data set has its own start, guessed from its data, in one compiled program.

    Args:
        model, bounds, fixed, loss, options, tie, prior, absolute_sigma, rowwise: those
            of `fit`, as are `covariance` and `host`.
        x: the coordinates that all share: (m,), or a tuple of arrays for several. For
            an `xarray.DataArray` as `Y` also the name of one of its dimensions. Dates
            as in `fit`.
        Y: data, the shape of x behind any leading dimensions: (N, m), (rows, columns,
            m); or a DataArray. Real or complex.
        edges: of bins, in place of x, as in `fit`: `fit_batch(model, Y=counts,
            edges=edges)`, with the bins as the last axes of Y.
        sigma: standard errors: one, of the shape of x, or of that of Y; of complex Y
            those of each part.
        sigma_x: standard errors of x, as in `fit`, the same for all: each data set is
            then an orthogonal distance regression of its own. The corrections of x are
            those of `BatchFit.fit(index)`.
        p0: starts by name, each a number or an array of the leading dimensions. Next to
            a DataArray `Y`, DataArrays of sigma, p0 and numbers of a likelihood go by
            their dimensions.
        nan_policy: "omit" leaves NaN of Y out, and gives NaN where none is left;
            "raise" refuses it. What is masked is left out in any case.
        shared: parameters that have one value for all data sets, a name or several: a
            rate, a width, an instrument's response. All data sets are then fitted
            together (`jaxfit.solve_joint`), each first by itself for a start. What has
            one value is a number in `fits[name]` and `fits.errors[name]`, with its
            error from all data, and all else a map. Parameters of each that enter
            linearly, such as heights, are eliminated (variable projection). A prior of
            what is shared counts once; of one over shared and other names the part of
            the shared ones does, and each data set has what it says of the others given
            those. Models on the host are refused.
        progress: show a bar; with `shared`, of the fits of each by itself.

    Returns:
        A `BatchFit`, of NumPy arrays with the leading dimensions of `Y`. Fits that fail
        raise nothing; their `status` tells. Maps have NaN where the data do not
        determine a parameter: see `BatchFit.determined`.

    Raises:
        ValueError, TypeError: for arguments that cannot be fitted.

    Warns:
        IncidentalParametersWarning: with a likelihood as the loss, what is shared may
            be biased: data sets have parameters of their own and few observations.
    """
    given = without_lmfit(Terms(model, p0, bounds, fixed, tie))
    model, p0 = as_model(given.model), given.p0
    check_loss(loss)
    if edges is not None:
        bins = bins_of(model, x, Y, edges, sigma_x)
        model, x = bins.model, bins.x
    elif Y is None:
        raise TypeError("Y is missing. Give fit_batch(model, x, Y).")
    check_exact_x(sigma_x, loss)
    plain = _Plain.of(Y, x)
    sigma = _in_order("sigma", sigma, plain.dims)
    loss = jax.tree.map(lambda own: _in_order("loss", own, plain.dims), loss)
    if isinstance(p0, Mapping):
        leading = plain.labels and plain.labels.dims
        p0 = {n: _in_order(f"p0[{n!r}]", v, leading) for n, v in p0.items()}
    dated = Dated.of(plain.x)
    x = coordinates(dated.x)
    is_complex = np.iscomplexobj(plain.y)
    y = complex_points(plain.y) if is_complex else real_points(plain.y, "Y")
    trailing = _trailing(x, y.shape)
    lead = y.shape[: y.ndim - len(trailing)]
    seen = observed(x, y, sigma, nan_policy, trailing)
    sigma_x = jax.tree.map(_values, sigma_x, is_leaf=_has_dims)
    seen = with_errors_in_x(seen, sigma_x, trailing)
    seen = with_likelihood(seen, loss, trailing)
    terms = {"bounds": given.bounds, "fixed": given.fixed, "tie": given.tie}
    terms |= {"prior": prior}
    asked = problem_from(model, p0=p0, rowwise=rowwise, **terms)
    names = shared_names(asked.problem, shared, asked.starts)
    check_not_shared(seen, names)
    starts = {name: _of_each(name, v, lead) for name, v in asked.starts.items()}
    settings = terms | {
        "sigma": None if seen.likelihood else seen.of_points(seen.data.sigma),
        "sigma_x": sigma_x,
        "loss": loss,
        "options": options,
        "absolute_sigma": absolute_sigma,
        "covariance": covariance,
        "rowwise": rowwise,
        "host": bool(host),
    }
    method = method_from(loss, options, absolute_sigma, covariance)
    check_method_with_errors(seen, method)

    runs = _Runs(
        given=asked.starts,
        starts=starts,
        seen=seen,
        lead=lead,
        method=method,
        shared=names,
        progress=progress,
    )
    found = with_functions(asked, seen.data.x, runs.fitted, bool(host))
    return BatchFit(
        problem=found.problem,
        x=seen.data.x,
        y=seen.y,
        dates=dated.dates,
        settings=settings,
        numbers=found.numbers,
        shape=lead,
        labels=plain.labels,
        together=found.together,
    )


class _Found(NamedTuple):
    """What came of all fits."""

    problem: Problem
    numbers: Numbers
    together: Together | None


class _Runs(NamedTuple):
    """What is asked of many fits besides their problem."""

    given: dict[str, Any]  # starts by name, as they came
    starts: dict[str, Any]  # one for each data set
    seen: Observed
    lead: tuple[int, ...]
    method: Method
    shared: tuple[str, ...]
    progress: bool

    def fitted(self, spoken: Asked) -> _Found:
        """The fits, wherever they ended."""
        seen, names, progress = self.seen, self.shared, self.progress
        check_unwatched(seen, False, spoken.is_on_host)
        check_derivatives(self.method, spoken.is_on_host)
        if names:
            check_known_scale(self.method.loss, "shared=")
        if names and spoken.is_on_host:
            raise ValueError(f"shared={names!r}: {ON_HOST}")
        problem = from_middle(spoken.problem.for_data(seen), self.given, seen.data.x)
        problem, together = for_sharing(problem, names), None
        flat = _flat(seen, starts_about(problem, self.starts), self.lead)
        method = spoken.method(self.method)
        inputs = problem, flat.data_sets, flat.axes, method
        if names and flat.data_sets.data.y.size:
            warn_of_incidental_parameters(problem, flat.data_sets, method, names)
            joint = joint_numbers(*inputs, names, progress=progress)
            numbers, together = joint.numbers, joint.together
        elif has_own_scale(method.loss):
            check_scale_can_be_found(spoken.is_on_host)
            numbers = batch_with_own_scales(*inputs, progress=progress)
        else:
            numbers = batch_numbers(*inputs, progress=progress)
        spoken.check(seen.data, numbers)
        _forget_empty(numbers, flat.data_sets.valid)
        return _Found(problem, numbers, together)


class _Flat(NamedTuple):
    """The data sets with one leading axis, and which of their arrays have it."""

    data_sets: DataSet
    axes: Axes


def _flat(seen: Observed, starts: dict[str, Any], lead: tuple[int, ...]) -> _Flat:
    data, trailing = seen.data, seen.data.y.shape[len(lead) :]

    def flat(values: Any) -> np.ndarray:
        return values.reshape(math.prod(lead), *trailing)

    sigma, sigma_axis = data.sigma, None
    if sigma is not None and sigma.ndim > len(trailing):
        sigma, sigma_axis = flat(np.broadcast_to(sigma, data.y.shape)), 0
    valid = None if seen.valid is None else flat(seen.valid)
    return _Flat(
        DataSet(
            data=Points(data.x, flat(data.y), sigma),
            valid=valid,
            starts=starts,
            sigma_x=seen.sigma_x,
        ),
        Axes(sigma=sigma_axis, valid=None if valid is None else 0),
    )


def _trailing(x: PyTree, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one data set."""

    def is_last(points: tuple[int, ...]) -> bool:
        return bool(points) and shape[len(shape) - len(points) :] == points

    if isinstance(x, np.ndarray):
        for points in (x.shape, x.shape[1:]):
            if is_last(points):
                return points
        raise ValueError(
            f"x has the shape {x.shape} and Y {shape}; the last dimensions of Y must "
            "be those of x."
        )
    leaves = jax.tree.leaves(x)
    points = np.broadcast_shapes(*map(np.shape, leaves)) if leaves else ()
    if not is_last(points):
        raise ValueError(
            f"x has coordinates that broadcast to {points}, and Y has the shape "
            f"{shape}; its last dimensions must be those of x."
        )
    return points


def _of_each(name: str, value: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """A start for each data set."""
    try:
        return np.broadcast_to(value, lead).reshape(-1)
    except ValueError as error:
        raise ValueError(
            f"p0[{name!r}] has the shape {value.shape}; give one number, or one for "
            f"each data set, {lead}."
        ) from error


def _forget_empty(numbers: Numbers, valid: Bool[np.ndarray, "N ..."] | None) -> None:
    """Write NaN into the numbers of data sets without any point."""
    if valid is None:
        return
    empty = ~valid.any(axis=tuple(range(1, valid.ndim)))
    if not empty.any():
        return
    numbers.status[empty] = Status.NONFINITE_START
    numbers.determined[empty] = False
    for values in jax.tree.leaves(numbers):
        if values.dtype.kind == "f":
            values[empty] = np.nan


class _Plain(NamedTuple):
    """Data without xarray's objects; all dimensions, and names of the leading ones."""

    y: Any
    x: PyTree
    dims: tuple[Any, ...] | None = None
    labels: Labels | None = None

    @classmethod
    def of(cls, data: Any, x: Any) -> "_Plain":
        """The arrays of Y and x."""
        if not _has_dims(data):
            if isinstance(x, str):
                raise TypeError(f"x is {x!r}, a name; Y then has to be a DataArray.")
            return cls(data, jax.tree.map(_values, x))
        if isinstance(x, str):
            if x not in data.dims:
                raise ValueError(
                    f"x is {x!r}; the dimensions of Y are "
                    f"{', '.join(map(str, data.dims))}."
                )
            data = data.transpose(..., x)
            x, count = data[x].values, 1
        else:
            leaves = jax.tree.leaves(x, is_leaf=_has_dims)
            names = list(
                dict.fromkeys(d for c in leaves for d in getattr(c, "dims", ()))
            )
            if names:
                data = data.transpose(..., *names)
            x = jax.tree.map(_values, x, is_leaf=_has_dims)
            count = len(names) or 1
        dims = data.dims[: data.ndim - count]
        coords = {k: v for k, v in data.coords.items() if set(v.dims) <= set(dims)}
        return cls(data.values, x, data.dims, Labels(dims, coords, data.name))


def _in_order(what: str, value: Any, dims: tuple[Any, ...] | None) -> Any:
    """The values of a DataArray along some dimensions, 1 long where it lacks one."""
    if not _has_dims(value) or dims is None:
        return _values(value)
    unknown = [str(d) for d in value.dims if d not in dims]
    if unknown:
        raise ValueError(
            f"{what} has the dimensions {', '.join(unknown)}, which are none of "
            f"{', '.join(map(str, dims))}."
        )
    shape = tuple(value.sizes.get(d, 1) for d in dims)
    return value.transpose(*(d for d in dims if d in value.dims)).values.reshape(shape)


def _has_dims(node: Any) -> bool:
    return hasattr(node, "dims")


def _values(node: Any) -> Any:
    """The values of a DataArray, or what else it is."""
    return getattr(node, "values", node)
