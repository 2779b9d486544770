"""`fit_batch`: one model and many data sets, from start to result."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._core.certificate import Status
from jaxfit._core.options import Options, check_loss
from jaxfit._scipy.arguments import coordinates, real_points
from jaxfit._scipy.observations import Points
from jaxfit.fitting._batch_result import BatchFit
from jaxfit.fitting._fit import covariance_kind
from jaxfit.fitting._multistart import check_inside
from jaxfit.fitting._points import Observed, observed
from jaxfit.fitting._problem import from_middle, pose, starts_about
from jaxfit.fitting._programs import Axes, Case, Manner
from jaxfit.fitting._run import run_batch
from jaxfit.losses import Loss
from jaxfit.models import as_model


def fit_batch(
    model: Any,
    x: PyTree,
    Y: Any,
    *,
    sigma: Any = None,
    p0: Any = None,
    bounds: Mapping[str, Any] | None = None,
    fixed: Any = None,
    loss: Loss | None = None,
    options: Options | None = None,
    nan_policy: str = "omit",
    tie: Mapping[str, Any] | None = None,
    prior: Mapping[str, tuple[float, float]] | None = None,
    absolute_sigma: bool = False,
    covariance: str | None = None,
    rowwise: bool = False,
    progress: bool = False,
) -> BatchFit:
    """Fit one model to many data sets: pixels, voxels, wells, spectra.

    Every data set has its own start, guessed from its data, in one compiled program.

    Args:
        model, bounds, fixed, loss, options, tie, prior, absolute_sigma, covariance,
            rowwise: those of `fit`.
        x: the coordinates that all share: (m,), or a tuple of arrays for several. For
            an `xarray.DataArray` as `Y` also the name of one of its dimensions.
        Y: data, the shape of x behind any leading dimensions: (N, m), (rows, columns,
            m); or a DataArray.
        sigma: standard errors: one, of the shape of x, or of that of Y.
        p0: starts by name, each a number or an array of the leading dimensions. Next to
            a DataArray `Y`, DataArrays of sigma and p0 go by their dimensions.
        nan_policy: "omit" leaves NaN of Y out, and gives NaN where none is left;
            "raise" refuses it. What is masked is left out in any case.
        progress: show a bar.

    Returns:
        A `BatchFit`, of NumPy arrays with the leading dimensions of `Y`. Fits that fail
        raise nothing; their `status` tells. Maps have NaN where the data do not
        determine a parameter: see `BatchFit.determined`.

    Raises:
        ValueError, TypeError: for arguments that cannot be fitted.
    """
    model = as_model(model)
    check_loss(loss)
    Y, x, dims, labels = _unlabelled(Y, x)
    sigma = _in_order("sigma", sigma, dims)
    if isinstance(p0, Mapping):
        leading = labels and labels[0]
        p0 = {n: _in_order(f"p0[{n!r}]", v, leading) for n, v in p0.items()}
    y, x = real_points(Y, "Y"), coordinates(x)
    trailing = _trailing(x, y.shape)
    lead = y.shape[: y.ndim - len(trailing)]
    seen = observed(x, y, sigma, nan_policy, trailing)
    sigma = seen.data.sigma
    terms = {"bounds": bounds, "fixed": fixed, "tie": tie, "prior": prior}
    problem, given = pose(model, p0=p0, rowwise=rowwise, **terms)
    check_inside(problem, given)
    starts = {name: _of_each(name, v, lead) for name, v in given.items()}
    problem = from_middle(problem, given, seen.data.x)
    starts = starts_about(problem, starts)
    settings = terms | {
        "sigma": sigma,
        "loss": loss,
        "options": options,
        "absolute_sigma": absolute_sigma,
        "covariance": covariance,
        "rowwise": rowwise,
    }
    manner = Manner(
        *(loss, options, np.bool_(absolute_sigma)),
        covariance_kind(covariance, loss),
    )
    case, axes = _flat(seen, starts, lead)
    numbers = run_batch(problem, case, axes, manner, progress)
    return BatchFit(
        problem=problem,
        x=seen.data.x,
        y=seen.data.y,
        settings=settings,
        numbers=_forget_empty(numbers, case.valid),
        shape=lead,
        labels=labels,
    )


def _flat(seen: Observed, starts: dict, lead: tuple) -> tuple[Case, Axes]:
    """The data sets with one leading axis, and which of their arrays have it."""
    x, y, sigma = seen.data

    def flat(values):
        return values.reshape(math.prod(lead), *y.shape[len(lead) :])

    valid = None if seen.valid is None else flat(seen.valid)
    axes = Axes(None, None if valid is None else 0)
    if sigma is not None and sigma.ndim > y.ndim - len(lead):
        sigma, axes = flat(seen.sigma), axes._replace(sigma=0)
    return Case(Points(x, flat(y), sigma), valid, starts), axes


def _trailing(x: PyTree, shape: tuple) -> tuple:
    """The shape of one data set."""
    if isinstance(x, np.ndarray):
        for own in (x.shape, x.shape[1:]):
            if own and shape[len(shape) - len(own) :] == own:
                return own
        raise ValueError(
            f"x has the shape {x.shape} and Y {shape}; the last dimensions of Y must "
            "be those of x."
        )
    leaves = jax.tree.leaves(x)
    own = np.broadcast_shapes(*(np.shape(leaf) for leaf in leaves)) if leaves else ()
    if not own or shape[len(shape) - len(own) :] != own:
        raise ValueError(
            f"x has coordinates that broadcast to {own}, and Y has the shape {shape}; "
            "its last dimensions must be those of x."
        )
    return own


def _of_each(name: str, value: np.ndarray, lead: tuple) -> np.ndarray:
    try:
        return np.broadcast_to(value, lead).reshape(-1)
    except ValueError as error:
        raise ValueError(
            f"p0[{name!r}] has the shape {value.shape}; give one number, or one for "
            f"each data set, {lead}."
        ) from error


def _forget_empty(numbers: dict, valid: np.ndarray | None) -> dict:
    """NaN for data sets without any point."""
    if valid is None:
        return numbers
    empty = ~valid.any(axis=tuple(range(1, valid.ndim)))
    if empty.any():
        numbers["status"][empty] = Status.NONFINITE_START
        numbers["determined"][empty] = False
        for value in numbers.values():
            if value.dtype.kind == "f":
                value[empty] = np.nan
    return numbers


def _unlabelled(data: Any, x: Any):
    """NumPy arrays of xarray's; all dimensions; what to call the leading ones."""
    if not hasattr(data, "dims"):
        if isinstance(x, str):
            raise TypeError(f"x is {x!r}, a name; Y then has to be a DataArray.")
        x = jax.tree.map(lambda leaf: getattr(leaf, "values", leaf), x)
        return data, x, None, None
    if isinstance(x, str):
        if x not in data.dims:
            raise ValueError(
                f"x is {x!r}; the dimensions of Y are {', '.join(map(str, data.dims))}."
            )
        data = data.transpose(..., x)
        x, count = data[x].values, 1
    else:
        names = list(
            dict.fromkeys(
                d
                for c in jax.tree.leaves(x, is_leaf=_has_dims)
                for d in getattr(c, "dims", ())
            )
        )
        if names:
            data = data.transpose(..., *names)
        x = jax.tree.map(lambda c: getattr(c, "values", c), x, is_leaf=_has_dims)
        count = len(names) or 1
    dims = data.dims[: data.ndim - count]
    coords = {k: v for k, v in data.coords.items() if set(v.dims) <= set(dims)}
    return data.values, x, data.dims, (dims, coords, data.name)


def _in_order(what: str, value: Any, dims: tuple | None) -> Any:
    """The values of a DataArray along some dimensions, 1 long where it lacks one."""
    if not _has_dims(value) or dims is None:
        return getattr(value, "values", value)
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
