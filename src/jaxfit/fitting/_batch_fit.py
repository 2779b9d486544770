"""`fit_batch`: one model, many data sets, and maps of what was found."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit._blocks import shown
from jaxfit._compile import Static
from jaxfit._options import Options
from jaxfit._solution import Status
from jaxfit._solve import check_loss
from jaxfit.fitting import _plot
from jaxfit.fitting._data import checked_sigma, real
from jaxfit.fitting._fit import Fit, fit, uses_sandwich
from jaxfit.fitting._problem import Data, Problem, pose
from jaxfit.fitting._program import Axes, Case, Manner, derived_names, run_batch
from jaxfit.fitting._save import needed
from jaxfit.fitting._starts import check_inside
from jaxfit.losses import Loss
from jaxfit.models import Model, as_model

BLOCK_NUMBERS = 2**24  # of data on the device at a time
NAN_POLICIES = "omit", "raise"


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
    progress: bool = False,
) -> "BatchFit":
    """Fit one model to many data sets: pixels, voxels, wells, spectra.

    Every data set has its own start, guessed from its data, in one compiled program.

    Args:
        model, bounds, fixed, loss, options, tie, prior, absolute_sigma, covariance:
            those of `fit`.
        x: the coordinates that all share: (m,), or a tuple of arrays for several. For
            an `xarray.DataArray` as `Y` also the name of one of its dimensions.
        Y: data, the shape of x behind any leading dimensions: (N, m), (rows, columns,
            m); or a DataArray.
        sigma: standard errors: one, of the shape of x, or of that of Y.
        p0: starts by name, each a number or an array of the leading dimensions.
        nan_policy: "omit" leaves NaN of Y out, and gives NaN where none is left;
            "raise" refuses it.
        progress: show a bar.

    Returns:
        A `BatchFit`, of NumPy arrays with the leading dimensions of `Y`. Fits that fail
        raise nothing; their `status` tells.

    Raises:
        ValueError, TypeError: for arguments that cannot be fitted.
    """
    model = as_model(model)
    check_loss(loss)
    if nan_policy not in NAN_POLICIES:
        raise ValueError(f"nan_policy is {nan_policy!r}; give 'omit' or 'raise'.")
    Y, x, labels = _unlabelled(Y, x)
    y = real("Y", Y)
    x = jax.tree.map(lambda leaf: real("x", leaf), x)
    trailing = _trailing(x, y.shape)
    lead = y.shape[: y.ndim - len(trailing)]
    number = math.prod(lead)
    y = y.reshape(number, *trailing)
    problem, given = pose(
        model, p0=p0, bounds=bounds, fixed=fixed, tie=tie, prior=prior
    )
    check_inside(problem, given)
    starts = {name: _of_each(name, v, lead) for name, v in given.items()}
    sigma, counts = _sigma(sigma, lead, trailing)
    valid = _valid(y, counts, nan_policy)
    manner = Manner(
        *(loss, options, np.bool_(absolute_sigma)),
        Static(uses_sandwich(covariance, loss)),
    )
    axes = Axes(
        None if sigma is None or sigma.ndim <= len(trailing) else 0,
        None if valid is None else 0,
    )
    case = Case(Data(x, y, sigma), valid, starts)
    numbers = in_blocks(problem, case, axes, manner, progress)
    return BatchFit(
        *(problem, x, y.reshape(*lead, *trailing)),
        *(_forget_empty(numbers, valid), lead, bool(absolute_sigma), labels),
    )


def in_blocks(
    problem: Problem, case: Case, axes: Axes, manner: Manner, progress: bool = False
) -> dict[str, np.ndarray]:
    """`run_batch`, a number of fits at a time, so that memory does not grow."""
    number = len(case.data.y)
    each = max(1, math.prod(case.data.y.shape[1:]))
    block = max(1, min(number, BLOCK_NUMBERS // each))
    found: list[dict[str, np.ndarray]] = []
    for start in shown(range(0, max(number, 1), block), block, number, progress):
        chosen = np.minimum(np.arange(start, start + block), max(number - 1, 0))

        def cut(axis, leaf, chosen=chosen):
            return leaf if axis is None else jax.tree.map(lambda a: a[chosen], leaf)

        whole = block == number
        part = (
            case
            if whole
            else jax.tree.map(cut, axes.case, case, is_leaf=lambda node: node is None)
        )
        numbers = run_batch(problem, part, axes, manner)
        kept = min(block, number - start)
        found.append({name: value[:kept] for name, value in numbers.items()})
    return {k: np.concatenate([one[k] for one in found]) for k in found[0]}


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


def _sigma(sigma: Any, lead: tuple, trailing: tuple):
    """Sigma with a batch axis if it differs among the data sets, and which count."""
    if sigma is None:
        return None, None
    sigma, counts = checked_sigma(getattr(sigma, "values", sigma), lead + trailing)
    if sigma.ndim > len(trailing):
        sigma = np.broadcast_to(sigma, lead + trailing).reshape(-1, *trailing)
    return sigma, counts


def _valid(y: np.ndarray, counts: Any, nan_policy: str) -> np.ndarray | None:
    if np.isinf(y).any():
        raise ValueError(f"Y has {int(np.isinf(y).sum())} infinite values.")
    valid = ~np.isnan(y)
    if nan_policy == "raise" and not valid.all():
        raise ValueError(
            f"{int((~valid).sum())} of {valid.size} values of Y are NaN. Say "
            "nan_policy='omit' to leave them out."
        )
    if counts is not None:
        valid = valid & counts.reshape(y.shape)
    return None if valid.all() else valid


def _forget_empty(numbers: dict, valid: np.ndarray | None) -> dict:
    """NaN for data sets without any point."""
    if valid is None:
        return numbers
    empty = ~valid.any(axis=tuple(range(1, valid.ndim)))
    if empty.any():
        numbers["status"][empty] = Status.NONFINITE_START
        for value in numbers.values():
            if value.dtype.kind == "f":
                value[empty] = np.nan
    return numbers


def _unlabelled(data: Any, x: Any):
    """NumPy arrays of xarray's, and what to call the leading dimensions."""
    if not hasattr(data, "dims"):
        if isinstance(x, str):
            raise TypeError(f"x is {x!r}, a name; Y then has to be a DataArray.")
        return data, jax.tree.map(lambda leaf: getattr(leaf, "values", leaf), x), None
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
    return data.values, x, (dims, coords, data.name)


def _has_dims(node: Any) -> bool:
    return hasattr(node, "dims")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BatchFit:
    """The result of `fit_batch`: arrays of the leading dimensions of the data.

    Attributes:
        problem: the model, and what became of each parameter.
        x, y: the data.
        numbers: what was computed, with one leading axis.
        shape: the leading dimensions.
        absolute_sigma: whether sigma is known.
    """

    problem: Problem
    x: PyTree
    y: np.ndarray
    numbers: Mapping[str, np.ndarray]
    shape: tuple[int, ...]
    absolute_sigma: bool
    labels: Any = None

    @property
    def model(self) -> Model:
        """The model."""
        return self.problem.model

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in order."""
        return self.model.names

    @functools.cached_property
    def values(self) -> dict[str, np.ndarray]:
        """The values of the parameters by name."""
        return self._by_name("values", derived=False)

    @functools.cached_property
    def errors(self) -> dict[str, np.ndarray]:
        """Their standard errors by name; infinite where undetermined."""
        return self._by_name("errors", derived=False)

    @functools.cached_property
    def derived(self) -> dict[str, np.ndarray]:
        """Derived quantities by name."""
        return self._by_name("values", derived=True)

    @functools.cached_property
    def derived_errors(self) -> dict[str, np.ndarray]:
        """Their standard errors by name."""
        return self._by_name("errors", derived=True)

    @property
    def at_bound(self) -> dict[str, np.ndarray]:
        """For each varied parameter -1 at its lower bound, 1 at its upper one, or 0."""
        return {
            name: self._map(self.numbers["active"][:, k])
            for k, name in enumerate(self.problem.varied)
        }

    @property
    def covariance(self) -> np.ndarray:
        """The covariances of the varied parameters, (..., n, n)."""
        n = len(self.problem.varied)
        return self.numbers["covariance"].reshape(*self.shape, n, n)

    @property
    def status(self) -> np.ndarray:
        """Numbers of `jaxfit.Status`."""
        return self._map(self.numbers["status"])

    @property
    def success(self) -> np.ndarray:
        """Which fits ended well: a certificate, see `jaxfit.Solution`."""
        return self.status > 0

    @property
    def nfev(self) -> np.ndarray:
        """Evaluations of the model."""
        return self._map(self.numbers["nfev"])

    @property
    def count(self) -> np.ndarray:
        """Points that count, and priors."""
        return self._map(self.numbers["count"])

    @property
    def chi_square(self) -> np.ndarray:
        """Twice the costs."""
        return 2 * self._map(self.numbers["cost"])

    @property
    def reduced_chi_square(self) -> np.ndarray:
        """Chi-square for each degree of freedom."""
        dof = self.count - len(self.problem.varied)
        return np.where(dof > 0, self.chi_square / np.where(dof > 0, dof, 1), np.nan)

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a parameter or a derived quantity."""
        for found in (self.values, self.derived):
            if name in found:
                return found[name]
        known = ", ".join([*self.values, *self.derived])
        raise KeyError(f"{name!r}; there are {known}")

    def predict(self, x: PyTree = None) -> np.ndarray:
        """The fitted curves at other points, or at the data."""
        points = self.x if x is None else x
        points = jax.tree.map(lambda leaf: np.asarray(leaf, float), points)
        values = {k: v.reshape(-1) for k, v in self.values.items()}
        curves = batch_values(self.problem, points, values)
        return curves.reshape(*self.shape, *curves.shape[1:])

    def fit(self, index: Any, **settings: Any) -> Fit:
        """The whole `Fit` of one data set, by its index; from where it ended.

        Args:
            index: a number, or a tuple for several leading dimensions.
            **settings: of `fit`, such as sigma.
        """
        start = {name: float(self.values[name][index]) for name in self.problem.varied}
        problem = self.problem
        lower, upper = problem.lower, problem.upper
        bounds = lower is not None and {
            n: (lower[k], upper[k]) for k, n in enumerate(problem.varied)
        }
        return fit(
            *(problem.model, self.x, self.y[index]),
            p0={**start, **problem.fixed},
            fixed=dict(problem.fixed),
            tie=dict(problem.ties),
            prior={k: tuple(map(float, v)) for k, v in problem.prior.items()},
            bounds=bounds or None,
            nan_policy="omit",
            absolute_sigma=self.absolute_sigma,
            **settings,
        )

    def __str__(self) -> str:
        good, total = int(self.success.sum()), self.success.size
        lines = [
            f"{self.model.label}: {total} fits {self.shape}, {good} with success "
            f"({good / max(total, 1):.2%})"
        ]
        codes, counts = np.unique(self.status, return_counts=True)
        lines += [
            f"  {Status(int(code)).name:<18}{number:>10}"
            for code, number in zip(codes, counts, strict=True)
            if code <= 0
        ]
        lines.append(
            f"{'':<20}{'median':>13}{'16 %':>13}{'84 %':>13}{'median error':>15}"
        )
        everything = self.values | self.derived
        errors = self.errors | self.derived_errors
        for name, value in everything.items():
            seen = value[self.success]
            if not seen.size:
                continue
            middle, low, high = np.quantile(seen, [0.5, 0.16, 0.84])
            error = np.median(errors[name][self.success])
            lines.append(
                f"{name[:19]:<20}{middle:>13.5g}{low:>13.5g}{high:>13.5g}{error:>15.3g}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<BatchFit of {self.model.label}, {self.shape}>"

    def to_xarray(self) -> Any:
        """Maps of values, errors and status as an xarray Dataset.

        Variables are the names, `<name>_stderr`, `status`, `chi_square` and so on; the
        dimensions are those of the DataArray that was fitted, or `dim_0`, `dim_1`.
        """
        xarray = needed("xarray")
        dims, coords, _ = self.labels or (
            tuple(f"dim_{k}" for k in range(len(self.shape))),
            *({}, None),
        )
        errors = self.errors | self.derived_errors
        maps = self.values | self.derived
        maps |= {f"{name}_stderr": value for name, value in errors.items()}
        maps |= {
            "status": self.status,
            "success": self.success,
            "nfev": self.nfev,
            "chi_square": self.chi_square,
            "reduced_chi_square": self.reduced_chi_square,
        }
        return xarray.Dataset(
            {name: (dims, value) for name, value in maps.items()},
            coords=coords,
            attrs={"model": self.model.label},
        )

    def to_dataframe(self) -> Any:
        """One row for each fit as a pandas DataFrame."""
        pandas = needed("pandas")
        columns: dict[str, Any] = {}
        errors = self.errors | self.derived_errors
        for name, value in (self.values | self.derived).items():
            columns[name] = value.ravel()
            columns[f"{name}_stderr"] = errors[name].ravel()
        columns |= {
            "status": self.status.ravel(),
            "reduced_chi_square": self.reduced_chi_square.ravel(),
        }
        index = None
        if len(self.shape) > 1:
            index = pandas.MultiIndex.from_product([range(n) for n in self.shape])
        return pandas.DataFrame(columns, index=index)

    plot = _plot.maps
    plot_status = _plot.status
    plot_fits = _plot.several

    def _map(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.shape)

    def _by_name(self, what: str, derived: bool) -> dict[str, np.ndarray]:
        count = len(self.names)
        names = derived_names(self.problem) if derived else self.names
        columns = self.numbers[what][:, count:] if derived else self.numbers[what]
        return {name: self._map(columns[:, k]) for k, name in enumerate(names)}


def batch_values(problem: Problem, points: PyTree, values: dict) -> np.ndarray:
    """The model at some points, for each of many sets of parameters."""
    from jaxfit._compile import compiled
    from jaxfit._host import double_precision
    from jaxfit.fitting._program import named

    with double_precision(named(problem.model)):
        return np.asarray(compiled(_curves, problem, (points, values)))


def _curves(problem, arguments):
    points, values = arguments

    def one(parameters):
        return problem.model.evaluate(points, parameters)

    return jax.vmap(one)(values)
