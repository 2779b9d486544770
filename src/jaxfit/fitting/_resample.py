"""The bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 9)."""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _host
from jaxfit._batch import batch_of_fits
from jaxfit._compile import Static, is_eager_on_cpu
from jaxfit._parts import in_parts, size_on_cpu
from jaxfit.fitting._problem import Data
from jaxfit.fitting._program import (
    Case,
    devices_for,
    everything,
    for_solver,
    named,
    shared_weights,
    status_within,
)

if TYPE_CHECKING:
    from jaxfit.fitting._result import Fit

KINDS = "residual", "case", "parametric"


class Bootstrap(NamedTuple):
    """Refits of resampled data."""

    resample: str
    names: tuple[str, ...]  # all parameters, then derived quantities
    values: np.ndarray  # (number, names)
    status: np.ndarray  # (number,)

    @property
    def stderr(self) -> dict[str, float]:
        """The scatter of the refits that ended well, by name."""
        spread = np.std(self.values[self.status > 0], axis=0, ddof=1)
        return dict(zip(self.names, map(float, spread), strict=True))

    def __getitem__(self, name):
        """The refits' values of one parameter, by its name."""
        if isinstance(name, str):
            return self.values[:, self.names.index(name)]
        return tuple(self)[name]


def run(fit: "Fit", number: int, resample: str, seed: int) -> Bootstrap:
    """See `Fit.bootstrap`."""
    if resample not in KINDS:
        raise ValueError(f"resample is {resample!r}; give one of {', '.join(KINDS)}.")
    if not (isinstance(number, int) and number >= 2):
        raise ValueError(f"number is {number!r}; give at least 2.")
    if fit.problem.prior:
        raise ValueError(
            "A bootstrap draws data anew, and a prior is none. Use intervals by "
            "profile likelihood for a fit with priors."
        )
    if fit.dof <= 0 and resample != "case":
        raise ValueError("No degree of freedom is left: there are no residuals.")
    seen = fit.observed
    size = int(np.size(seen.data.y))
    valid = np.arange(size) if seen.valid is None else np.flatnonzero(seen.valid)
    scale = 1.0 if fit.absolute_sigma else float(np.sqrt(fit.reduced_chi_square))
    drawn = {
        "index": valid,
        "scale": np.asarray(scale),
        "inflation": np.sqrt(len(valid) / max(fit.dof, 1)),
        "seed": np.asarray(seed),
    }
    case = Case(seen.data, seen.valid, {})
    manner = fit.manner._replace(absolute=np.bool_(True))
    x = for_solver(fit.numbers, "x")
    with _host.double_precision(named(fit.model)):
        is_on_cpu = is_eager_on_cpu(case)
        fits = size_on_cpu(size) if is_on_cpu else number
        static = Static((resample, None if is_on_cpu else devices_for(number)))
        values, status = in_parts(
            _run,
            fit.problem,
            lambda part, idle: (case, manner, x, drawn, static, part, idle),
            np.arange(number),
            fits,
            is_on_cpu=is_on_cpu,
        )
    names = fit.problem.names + fit.problem.derived_names
    return Bootstrap(resample, names, values, status)


def _run(problem, arguments):
    """The fits of some samples, by their numbers."""
    case, manner, x, drawn, static, numbers, idle = arguments
    resample, mesh = static.value
    data, valid = case.data, case.valid
    if resample == "case":
        weights = jax.vmap(lambda k: _counts(case, drawn, k))(numbers)
        y, y_axis = data.y, None
    else:
        best = problem.values(x, data.x, data.y.shape)
        y_of = functools.partial(_simulated, case, drawn, resample, best)
        y, y_axis = jax.vmap(y_of)(numbers), 0
        weights = shared_weights(problem, valid, len(numbers))
    x, status = batch_of_fits(
        problem.function,
        jnp.broadcast_to(x, (len(numbers), *x.shape)),
        Data(data.x, y, data.sigma),
        (0, Data(None, y_axis, None)),
        idle,
        bounds=problem.bounds,
        weights=weights,
        loss=manner.loss,
        options=manner.options,
        mesh=mesh,
        keep=lambda s: (s.x, s.status),
    )
    status = jax.vmap(status_within, (None, 0, 0))(problem, x, status)
    return jax.vmap(everything, (None, 0))(problem, x), status


def _key(drawn, number):
    """The random numbers of one sample, whatever others there are."""
    return jax.random.fold_in(jax.random.key(drawn["seed"]), number)


def _counts(case: Case, drawn, number) -> dict:
    """How often each point is in a sample."""
    index, y = drawn["index"], case.data.y
    chosen = jax.random.randint(_key(drawn, number), index.shape, 0, len(index))
    counts = jnp.zeros(y.size, float).at[index[chosen]].add(1.0)
    return {"data": counts.reshape(y.shape)}


def _simulated(case: Case, drawn, resample: str, best, number):
    """The data of a sample: the model with noise."""
    data, index, key = case.data, drawn["index"], _key(drawn, number)
    sigma = 1.0 if data.sigma is None else jnp.broadcast_to(data.sigma, best.shape)
    if resample == "parametric":
        noise = jax.random.normal(key, best.shape, best.dtype)
        return best + sigma * drawn["scale"] * noise
    left = ((data.y - best) / sigma).ravel()[index]
    left = (left - jnp.mean(left)) * drawn["inflation"]
    chosen = jax.random.randint(key, index.shape, 0, len(index))
    noise = jnp.zeros(best.size, best.dtype).at[index].set(left[chosen])
    return best + sigma * noise.reshape(best.shape)
