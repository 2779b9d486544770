"""`curvefit`: the method of that name of xarray's objects, as one compiled batch."""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from jaxfit._core.options import Options
from jaxfit._numpy.either import is_numpy
from jaxfit._programs.arrays import moments
from jaxfit._scipy.arguments import real_array
from jaxfit._scipy.observations import Points
from jaxfit.fitting._arguments import ProblemAndStarts, method_from
from jaxfit.fitting._functions import Asked, with_functions
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Method, Problem
from jaxfit.fitting._run import batch_numbers
from jaxfit.fitting.output._tables import needed
from jaxfit.models import FunctionModel

LIMITS = "maxfev", "max_nfev"
TOLERANCES = "ftol", "xtol", "gtol"
UNBOUNDED = (-np.inf, np.inf)
WITHOUT_MEANING = "method", "jac", "check_finite", "epsfcn", "diff_step"


def curvefit(
    obj: Any,
    coords: Any,
    func: Callable,
    reduce_dims: Any = None,
    skipna: bool = True,
    p0: Mapping[str, Any] | None = None,
    bounds: Mapping[str, tuple[Any, Any]] | None = None,
    param_names: Sequence[str] | None = None,
    errors: str = "raise",
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """Fit a function along dimensions of a Dataset or DataArray: xarray's `curvefit`.

    `jaxfit.curvefit(ds, "time", decay)` in place of `ds.curvefit("time", decay)`: the
    same arguments and the same variables in the result.

    Args:
        obj: a Dataset or DataArray.
        coords: the coordinate or coordinates that `func` takes, names or DataArrays.
            Dates arrive as numbers since 1970 and times as numbers, in the unit of
            their dtype: seconds for datetime64[s], nanoseconds for datetime64[ns].
        func: `f(x, *params)`, or for several coordinates `f((x, y), *params)`, in
            NumPy or `jax.numpy`.
        reduce_dims: further dimensions to fit along.
        skipna: leave NaN out.
        p0: starts by name, numbers or DataArrays.
        bounds: (lower, upper) by name, numbers or DataArrays.
        param_names: names, for a function of variable arguments.
        errors: "raise", or "ignore", which gives NaN where a fit fails.
        kwargs: keywords of `curve_fit`: absolute_sigma, ftol, xtol, gtol, maxfev,
            host; those that choose among SciPy's methods have no meaning.

    Returns:
        A Dataset with `[var]_curvefit_coefficients` and `[var]_curvefit_covariance`.

    Raises:
        ValueError, TypeError: for arguments that cannot be fitted.
        RuntimeError: a fit failed, and `errors` is "raise".
    """
    xarray = needed("xarray")
    if errors not in ("raise", "ignore"):
        raise ValueError('errors must be either "raise" or "ignore"')
    coordinates = _coordinates(obj, coords, xarray)
    parameters = _parameters(func, param_names)
    names, bounds, kwargs = parameters.names, dict(bounds or {}), dict(kwargs or {})
    on_host = bool(kwargs.pop("host", False))
    fitting = _Fitting(
        problem=_unbounded(_Named(plain=func, parameters=tuple(names))),
        method=_method(kwargs),
        coordinates=coordinates,
        reduced=_reduced(obj, coordinates, reduce_dims),
        starts=_starts(parameters, dict(p0 or {}), bounds, xarray),
        limits={n: bounds.get(n, UNBOUNDED) for n in names} if bounds else None,
        skipna=skipna,
        raises=errors == "raise",
        on_host=on_host,
    )
    is_array = isinstance(obj, xarray.DataArray)
    variables = {"": obj} if is_array else {f"{k}_": v for k, v in obj.items()}
    result = xarray.Dataset()
    for prefix, variable in variables.items():
        fitted = fitting.of(variable, prefix[:-1] or "the array")
        result[f"{prefix}curvefit_coefficients"] = xarray.DataArray(
            fitted.coefficients, dims=(*fitted.dims, "param"), coords=fitted.coords
        )
        result[f"{prefix}curvefit_covariance"] = xarray.DataArray(
            fitted.covariance,
            dims=(*fitted.dims, "cov_i", "cov_j"),
            coords=fitted.coords,
        )
    result = result.assign_coords(param=names, cov_i=names, cov_j=names)
    result.attrs = dict(obj.attrs)
    return result


class _Named(FunctionModel):
    """A function of (x, *params) with names for its parameters."""

    parameters: tuple[str, ...] = ()

    @property
    def own_names(self) -> tuple[str, ...]:
        return self.parameters

    def start(self, x: PyTree, y: Any, known: Mapping[str, Any]) -> dict[str, Any]:
        return dict.fromkeys(self.parameters, np.float64(1.0))  # all are given

    def called(
        self, function: Callable, parameters: Mapping[str, Any], x: PyTree
    ) -> Any:
        stack = np.stack if is_numpy(*x) else jnp.stack
        x = x[0] if len(x) == 1 else stack(x)
        return function(x, *(parameters[name] for name in self.parameters))


def _unbounded(model: _Named) -> Problem:
    """The problem of a model of which every parameter varies."""
    return Problem(
        model=model,
        varied=model.parameters,
        fixed={},
        ties={},
        lower=None,
        upper=None,
        prior=(),
    )


# One variable


class _Fitted(NamedTuple):
    """What was found for a variable."""

    coefficients: np.ndarray  # (*dims, n)
    covariance: np.ndarray  # (*dims, n, n)
    dims: list[Any]  # that were not fitted along
    coords: dict[Any, Any]  # of these


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """What is fitted to each variable, along which dimensions, and how."""

    problem: Problem
    method: Method
    coordinates: list[Any]  # DataArrays
    reduced: list[Any]  # the dimensions that are fitted along
    starts: Mapping[str, Any]  # numbers or DataArrays, by name
    limits: Mapping[str, tuple[Any, Any]] | None  # (lower, upper), likewise
    skipna: bool
    raises: bool  # where a fit fails
    on_host: bool  # the function is left to NumPy, in silence

    def of(self, variable: Any, name: str) -> _Fitted:
        """The fits of a variable."""
        if not set(self.reduced) <= set(variable.dims):
            raise ValueError(
                f"{name} has the dimensions {variable.dims}, and is to be fitted along "
                f"{', '.join(map(str, self.reduced))}."
            )
        dims = [d for d in variable.dims if d not in self.reduced]
        data_sets = self._data_sets(variable, dims)
        axes = Axes.of(data_sets)

        def fitted(spoken: Asked) -> Numbers:
            method = spoken.method(self.method)
            numbers = batch_numbers(spoken.problem, data_sets, axes, method)
            spoken.check(data_sets.data, numbers)
            return numbers

        asked = ProblemAndStarts(self.problem, data_sets.starts)
        numbers = with_functions(asked, data_sets.data.x, fitted, self.on_host)
        numbers = self._judged(numbers, data_sets.valid)
        shape, n = [variable.sizes[d] for d in dims], len(self.problem.varied)
        coords = {k: c for k, c in variable.coords.items() if set(c.dims) <= set(dims)}
        return _Fitted(
            coefficients=numbers.x.reshape(*shape, n),
            covariance=numbers.covariance.reshape(*shape, n, n),
            dims=dims,
            coords=coords,
        )

    def _data_sets(self, variable: Any, dims: list[Any]) -> DataSet:
        """The data along the reduced dimensions, for each point of the others."""
        data = variable.transpose(*dims, *self.reduced)
        number = math.prod(data.sizes[d] for d in dims)
        y = real_array(data.values, f"{variable.name or 'the array'}")
        y = y.reshape(number, -1)
        along = data.isel(dict.fromkeys(dims, 0))
        across = data.isel(dict.fromkeys(self.reduced, 0), drop=True)
        x = _numbers(
            c.broadcast_like(along).transpose(*self.reduced).values.ravel()
            for c in self.coordinates
        )
        valid = ~np.isnan(y) & ~np.isnan(np.stack(x)).all(axis=0)
        if not self.skipna and not valid.all():
            raise ValueError("array must not contain infs or NaNs")
        starts = {n: _of_each(v, across, dims) for n, v in self.starts.items()}
        bounds = None
        if self.limits is not None:
            lower, upper = (
                np.stack([_of_each(v, across, dims) for v in side], axis=1)
                for side in zip(*self.limits.values(), strict=True)
            )
            start = np.stack(list(starts.values()), axis=1)
            if ((start < lower) | (start > upper)).any():
                raise ValueError("`x0` is infeasible.")
            bounds = lower, upper
        counts = None if valid.all() else valid
        return DataSet(Points(x, y, None), counts, starts, bounds)

    def _judged(
        self, numbers: Numbers, valid: Bool[np.ndarray, "N m"] | None
    ) -> Numbers:
        """The numbers, NaN where a fit failed or has no point."""
        is_empty = np.zeros(len(numbers.status), bool)
        if valid is not None:
            is_empty = ~valid.any(axis=1)
        is_failed = ~numbers.success & ~is_empty
        if self.raises and is_failed.any():
            raise RuntimeError(
                f"Optimal parameters not found in {int(is_failed.sum())} of "
                f"{len(is_failed)} fits. Give starts nearer to the solutions, or say "
                'errors="ignore" to get NaN there.'
            )
        is_lost = is_failed | is_empty
        covariance = numbers.covariance
        is_unknown = ~np.isfinite(covariance).all(axis=(1, 2))
        covariance = np.where(is_unknown[:, None, None], np.inf, covariance)
        return numbers._replace(
            x=np.where(is_lost[:, None], np.nan, numbers.x),
            covariance=np.where(is_lost[:, None, None], np.nan, covariance),
        )


def _of_each(value: Any, across: Any, dims: list[Any]) -> Float[np.ndarray, " N"]:
    """A number, or a DataArray, for each fit; `across` has their dimensions."""
    if hasattr(value, "dims"):
        unexpected = set(value.dims) - set(dims)
        if unexpected:
            raise ValueError(
                f"p0 or bounds have unexpected dimensions {tuple(unexpected)}; "
                f"expected those of {dims}."
            )
        value = value.broadcast_like(across).transpose(*dims).values
    value = real_array(value, "p0 or bounds")
    return np.broadcast_to(value, [across.sizes[d] for d in dims]).reshape(-1)


# Arguments


def _numbers(
    coordinates: Iterable[np.ndarray],
) -> tuple[Float[np.ndarray, " m"], ...]:
    """Coordinates as floats; dates and times in their unit, or the finest of several.

    That is xarray's rule, which stacks them; dates beside numbers do not stack.
    """
    arrays: Iterable[np.ndarray] = list(coordinates)
    with contextlib.suppress(TypeError):
        arrays = np.stack(arrays)
    return tuple(
        moments(values)
        if values.dtype.kind in "mM"
        else real_array(values, "a coordinate")
        for values in arrays
    )


def _coordinates(obj: Any, coords: Any, xarray: Any) -> list[Any]:
    if isinstance(coords, (str, xarray.DataArray)) or not hasattr(coords, "__iter__"):
        coords = [coords]
    return [obj[c] if isinstance(c, str) else c for c in coords]


def _reduced(obj: Any, coordinates: list[Any], reduce_dims: Any) -> list[Any]:
    """The dimensions that are fitted along, in the order of the object."""
    if reduce_dims is None:
        chosen: set = set()
    elif isinstance(reduce_dims, str) or not hasattr(reduce_dims, "__iter__"):
        chosen = {reduce_dims}
    else:
        chosen = set(reduce_dims)
    for coordinate in coordinates:
        chosen |= {d for d in obj.dims if coordinate.equals(obj[d])}
    if not chosen:
        raise ValueError(
            "No arguments to `coords` were identified as a dimension on the calling "
            "object, and no dims were supplied to `reduce_dims`. This would result "
            "in fitting on scalar data."
        )
    return [d for d in obj.dims if d in chosen]


class _Parameters(NamedTuple):
    """The parameters of a function."""

    names: list[str]
    arguments: Mapping[str, inspect.Parameter]  # of the function, as far as it tells


def _parameters(func: Callable, param_names: Sequence[str] | None) -> _Parameters:
    try:
        arguments = dict(inspect.signature(func).parameters)
    except (TypeError, ValueError) as error:
        arguments = {}
        if not param_names:
            raise ValueError(
                "Unable to inspect `func` signature, and `param_names` was not "
                "provided."
            ) from error
    if param_names:
        return _Parameters(list(param_names), arguments)
    kinds = {p.kind for p in arguments.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise ValueError(
            "`param_names` must be provided because `func` takes variable length "
            "arguments."
        )
    return _Parameters(list(arguments)[1:], arguments)


def _starts(
    parameters: _Parameters,
    p0: Mapping[str, Any],
    bounds: Mapping[str, tuple[Any, Any]],
    xarray: Any,
) -> dict[str, Any]:
    """Starts in xarray's order: p0, then the function's default or 1, within bounds."""
    starts = {}
    for name in parameters.names:
        argument, start = parameters.arguments.get(name), 1.0
        if argument is not None and argument.default is not argument.empty:
            start = argument.default
        if name in p0:
            start = p0[name]
        elif name in bounds:
            start = _inside(start, *bounds[name], xarray)
        starts[name] = start
    return starts


def _inside(start: Any, lower: Any, upper: Any, xarray: Any) -> Any:
    """A start, moved to where xarray does if it is outside its bounds."""
    has_lower, has_upper = np.isfinite(lower), np.isfinite(upper)
    inside = xarray.where(
        has_lower,
        xarray.where(has_upper, 0.5 * (lower + upper), lower + 1),
        xarray.where(has_upper, upper - 1, 0),
    )
    return xarray.where((start < lower) | (start > upper), inside, start)


def _method(kwargs: dict[str, Any]) -> Method:
    """How it is fitted, from keywords of `curve_fit`."""
    absolute_sigma = bool(kwargs.pop("absolute_sigma", False))
    settings = {name: kwargs.pop(name) for name in TOLERANCES if name in kwargs}
    for name in LIMITS:
        if name in kwargs:
            settings["max_steps"] = kwargs.pop(name)
    for name in WITHOUT_MEANING:
        kwargs.pop(name, None)
    if kwargs:
        raise TypeError(
            f"kwargs has {', '.join(kwargs)}; absolute_sigma, tolerances and maxfev "
            "are passed on. Use jaxfit.fit_batch for sigma and losses."
        )
    options = Options(**settings) if settings else None
    return method_from(None, options, absolute_sigma, "gram")
