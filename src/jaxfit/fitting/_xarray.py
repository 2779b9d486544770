"""`curvefit`: the method of that name of xarray's objects, as one compiled batch."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfit._core.options import Options
from jaxfit._programs.arrays import moments
from jaxfit._programs.call import Static
from jaxfit._scipy.arguments import real_array
from jaxfit._scipy.observations import Points
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._programs import Axes, Case, Manner
from jaxfit.fitting._run import run_batch
from jaxfit.fitting.output._save import needed
from jaxfit.models import FunctionModel

LIMITS = "maxfev", "max_nfev"
TOLERANCES = "ftol", "xtol", "gtol"
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
            `jax.numpy`.
        reduce_dims: further dimensions to fit along.
        skipna: leave NaN out.
        p0: starts by name, numbers or DataArrays.
        bounds: (lower, upper) by name, numbers or DataArrays.
        param_names: names, for a function of variable arguments.
        errors: "raise", or "ignore", which gives NaN where a fit fails.
        kwargs: keywords of `curve_fit`: absolute_sigma, ftol, xtol, gtol, maxfev; those
            that choose among SciPy's methods have no meaning.

    Returns:
        A Dataset with `[var]_curvefit_coefficients` and `[var]_curvefit_covariance`.

    Raises:
        ValueError, TypeError: for arguments that cannot be fitted.
        RuntimeError: a fit failed, and `errors` is "raise".
    """
    xarray = needed("xarray")
    if errors not in ("raise", "ignore"):
        raise ValueError('errors must be either "raise" or "ignore"')
    p0, bounds = dict(p0 or {}), dict(bounds or {})
    options, absolute = _settings(dict(kwargs or {}))
    is_array = isinstance(obj, xarray.DataArray)
    variables = {"": obj} if is_array else {f"{k}_": v for k, v in obj.items()}
    coordinates = _coordinates(obj, coords, xarray)
    reduced = _reduced(obj, coordinates, reduce_dims)
    names, arguments = _parameters(func, param_names)
    limits = {n: bounds.get(n, (-np.inf, np.inf)) for n in names}
    starts = {
        n: _start(n, arguments, limits[n], n in bounds, p0, xarray) for n in names
    }
    problem = Problem(
        model=_Named(func, tuple(names)),
        varied=tuple(names),
        fixed={},
        ties={},
        lower=None,
        upper=None,
        prior={},
    )
    manner = Manner(None, options, np.bool_(absolute), Static("gram"))
    result = xarray.Dataset()
    for prefix, variable in variables.items():
        if not set(reduced) <= set(variable.dims):
            raise ValueError(
                f"{prefix[:-1] or 'the array'} has the dimensions {variable.dims}, and "
                f"is to be fitted along {', '.join(map(str, reduced))}."
            )
        kept = [d for d in variable.dims if d not in reduced]
        found, covariance = _fitted(
            *(problem, variable, coordinates, reduced, kept, skipna),
            *(starts, limits, bool(bounds), manner, errors),
        )
        own = {k: c for k, c in variable.coords.items() if set(c.dims) <= set(kept)}
        result[f"{prefix}curvefit_coefficients"] = xarray.DataArray(
            found, dims=(*kept, "param"), coords=own
        )
        result[f"{prefix}curvefit_covariance"] = xarray.DataArray(
            covariance, dims=(*kept, "cov_i", "cov_j"), coords=own
        )
    result = result.assign_coords(param=names, cov_i=names, cov_j=names)
    result.attrs = dict(obj.attrs)
    return result


class _Named(FunctionModel):
    """A function of (x, *params) with names for its parameters."""

    given: tuple[str, ...] = ()

    def __init__(self, plain, given):
        self.plain, self.given, self.prefix = plain, given, ""

    def __check_init__(self):
        pass

    @property
    def own_names(self):
        return self.given

    def evaluate(self, x, parameters):
        x = x[0] if len(x) == 1 else jnp.stack(x)
        return self.plain(x, *(parameters[name] for name in self.given))


def _fitted(
    *arguments,
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and covariances of one variable."""
    problem, variable, coordinates, reduced, kept, skipna = arguments[:6]
    starts, limits, bounded, manner, errors = arguments[6:]
    data = variable.transpose(*kept, *reduced)
    shape = tuple(data.sizes[d] for d in kept)
    y = real_array(data.values, f"{variable.name or 'the array'}")
    y = y.reshape(int(np.prod(shape)), -1)
    template = data.isel(dict.fromkeys(kept, 0))
    x = _numbers(
        [
            c.broadcast_like(template).transpose(*reduced).values.ravel()
            for c in coordinates
        ]
    )

    def of_each(value):
        if hasattr(value, "dims"):
            unexpected = set(value.dims) - set(kept)
            if unexpected:
                raise ValueError(
                    f"p0 or bounds have unexpected dimensions {tuple(unexpected)}; "
                    f"expected those of {kept}."
                )
            template = data.isel(dict.fromkeys(reduced, 0), drop=True)
            value = value.broadcast_like(template).transpose(*kept).values
        value = real_array(value, "p0 or bounds")
        return np.broadcast_to(value, shape).reshape(-1)

    valid = ~np.isnan(y) & ~np.isnan(np.stack(x)).all(axis=0)
    if not skipna and not valid.all():
        raise ValueError("array must not contain infs or NaNs")
    case = Case(
        Points(x, y, None),
        None if valid.all() else valid,
        {name: of_each(value) for name, value in starts.items()},
        _stacked(limits, of_each) if bounded else None,
    )
    axes = Axes(None, None if case.valid is None else 0, 0 if bounded else None)
    if case.bounds is not None:
        lower, upper = case.bounds
        start = np.stack(list(case.starts.values()), axis=1)
        if ((start < lower) | (start > upper)).any():
            raise ValueError("`x0` is infeasible.")
    numbers = run_batch(problem, case, axes, manner)
    failed = ~(numbers["status"] > 0)
    empty = ~valid.any(axis=1)
    if errors == "raise" and (failed & ~empty).any():
        number = int((failed & ~empty).sum())
        raise RuntimeError(
            f"Optimal parameters not found in {number} of {len(y)} fits. Give starts "
            'nearer to the solutions, or say errors="ignore" to get NaN there.'
        )
    x, covariance = numbers["x"], numbers["covariance"]
    x = np.where((failed | empty)[:, None], np.nan, x)
    covariance = np.where((failed | empty)[:, None, None], np.nan, covariance)
    unknown = ~np.isfinite(covariance).all(axis=(1, 2)) & ~(failed | empty)
    covariance = np.where(unknown[:, None, None], np.inf, covariance)
    n = x.shape[1]
    return x.reshape(*shape, n), covariance.reshape(*shape, n, n)


def _stacked(limits, of_each):
    lower, upper = (
        np.stack([of_each(pair[i]) for pair in limits.values()], axis=1) for i in (0, 1)
    )
    return lower, upper


def _numbers(coordinates: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Coordinates as floats; dates and times in their unit, or the finest of several.

    That is xarray's rule, which stacks them; dates beside numbers do not stack.
    """
    with contextlib.suppress(TypeError):
        coordinates = np.stack(list(coordinates))
    return tuple(
        moments(values)
        if values.dtype.kind in "mM"
        else real_array(values, "a coordinate")
        for values in coordinates
    )


def _coordinates(obj, coords, xarray) -> list:
    if isinstance(coords, (str, xarray.DataArray)) or not hasattr(coords, "__iter__"):
        coords = [coords]
    return [obj[c] if isinstance(c, str) else c for c in coords]


def _reduced(obj, coordinates, reduce_dims) -> list:
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


def _parameters(func, param_names):
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
        return list(param_names), arguments
    kinds = {p.kind for p in arguments.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise ValueError(
            "`param_names` must be provided because `func` takes variable length "
            "arguments."
        )
    return list(arguments)[1:], arguments


def _start(name, arguments, limits, is_bounded, p0, xarray):
    """xarray's order: p0, then the function's default or 1, moved inside bounds."""
    if name in p0:
        return p0[name]
    start = 1.0
    own = arguments.get(name)
    if own is not None and own.default is not own.empty:
        start = own.default
    if not is_bounded:
        return start
    lower, upper = limits
    has_lower, has_upper = np.isfinite(lower), np.isfinite(upper)
    inside = xarray.where(
        has_lower,
        xarray.where(has_upper, 0.5 * (lower + upper), lower + 1),
        xarray.where(has_upper, upper - 1, 0),
    )
    return xarray.where((start < lower) | (start > upper), inside, start)


def _settings(kwargs: dict[str, Any]) -> tuple[Options | None, bool]:
    absolute = bool(kwargs.pop("absolute_sigma", False))
    given = {name: kwargs.pop(name) for name in TOLERANCES if name in kwargs}
    for name in LIMITS:
        if name in kwargs:
            given["max_steps"] = kwargs.pop(name)
    for name in WITHOUT_MEANING:
        kwargs.pop(name, None)
    if kwargs:
        raise TypeError(
            f"kwargs has {', '.join(kwargs)}; absolute_sigma, tolerances and maxfev "
            "are passed on. Use jaxfit.fit_batch for sigma and losses."
        )
    return (Options(**given) if given else None), absolute
