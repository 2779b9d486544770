"""The bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 9)."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _host
from jaxfit._batch import solve_batch
from jaxfit._compile import Static, compiled
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
    arguments = (
        Case(seen.data, seen.valid, {}),
        fit.manner._replace(absolute=np.bool_(True)),
        *(for_solver(fit.numbers, "x"), drawn),
        Static((number, resample, devices_for(number))),
    )
    with _host.double_precision(named(fit.model)):
        values, status = map(np.asarray, compiled(_run, fit.problem, arguments))
    names = fit.problem.names + fit.problem.derived_names
    return Bootstrap(resample, names, values, status)


def _run(problem, arguments):
    case, manner, x, drawn, static = arguments
    number, resample, mesh = static.value
    data, index = case.data, drawn["index"]
    shape, size = data.y.shape, data.y.size
    sigma = 1.0 if data.sigma is None else jnp.broadcast_to(data.sigma, shape)
    best = problem.values(x, data.x, shape)
    key = jax.random.key(drawn["seed"])
    y, y_axis = data.y, None
    if resample == "parametric":
        noise = jax.random.normal(key, (number, *shape), best.dtype)
        y, y_axis = best + sigma * drawn["scale"] * noise, 0
    else:
        chosen = jax.random.randint(key, (number, len(index)), 0, len(index))
    if resample == "residual":
        left = ((data.y - best) / sigma).ravel()[index]
        left = (left - jnp.mean(left)) * drawn["inflation"]
        noise = jnp.zeros((number, size), best.dtype).at[:, index].set(left[chosen])
        y, y_axis = best + sigma * noise.reshape(number, *shape), 0
    if resample == "case":
        rows = jnp.arange(number)[:, None]
        counts = jnp.zeros((number, size), best.dtype)
        counts = counts.at[rows, index[chosen]].add(1.0)
        weights = {"data": counts.reshape(number, *shape)}
    else:
        weights = shared_weights(problem, case.valid, number)
    x, status = solve_batch(
        problem.function,
        jnp.broadcast_to(x, (number, *x.shape)),
        Data(data.x, y, data.sigma),
        in_axes=(0, Data(None, y_axis, None)),
        bounds=problem.bounds,
        weights=weights,
        loss=manner.loss,
        options=manner.options,
        mesh=mesh,
        keep=lambda s: (s.x, s.status),
    )
    status = jax.vmap(status_within, (None, 0, 0))(problem, x, status)
    return jax.vmap(everything, (None, 0))(problem, x), status
