"""Draws of the parameters: Laplace's approximation of the posterior.

Vectors are drawn from the normal distribution of the solver's vector, and those outside
of bounds are drawn again. Of data sets that share parameters the shared ones are drawn
once, and those of each from what they are given these: with the covariance L Lᵀ over
shared and local ones, in this order, the first rows of L are the same for all.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxfit._programs.host import computed
from jaxfit._scipy.observations import bucket
from jaxfit.fitting._batch_record import BatchRecord
from jaxfit.fitting._fitted import listed
from jaxfit.fitting._numbers import AtSolver
from jaxfit.fitting._problem import Problem, traced_function
from jaxfit.fitting._programs import everything
from jaxfit.fitting._record import Record

ENOUGH = 1000  # draws after which it is judged how many lie inside
LEAST = 0.01  # of the draws, which have to

Vectors = Float[np.ndarray, "N number n"]


def draws(record: Record, number: int, seed: int) -> dict[str, np.ndarray]:
    """Draws of one fit by name, see `Fit.draws`."""
    end = record.numbers.at_solver
    unknown = [
        name
        for name, error in zip(record.varied, np.diagonal(end.covariance), strict=True)
        if not np.isfinite(error)
    ]
    if unknown:
        raise ValueError(
            f"There is no normal distribution to draw from: {listed(unknown)} "
            f"{'has' if len(unknown) == 1 else 'have'} no finite error. Fix what the "
            "data do not determine, tie it, or give it a prior."
        )
    one = AtSolver(end.x[None], end.covariance[None])
    values = _values(record.problem, _drawn(record.problem, one, number, seed))[0]
    if np.isnan(values).all():
        raise ValueError(
            f"Of {ENOUGH} draws less than {LEAST:.0%} lie within the bounds: the "
            "estimate is at a corner of them, and no normal distribution describes "
            "what is known. Widen the bounds, or sample `log_density`."
        )
    return _by_name(record.problem, values)


def batch_draws(record: BatchRecord, number: int, seed: int) -> dict[str, np.ndarray]:
    """Draws of many fits by name, see `BatchFit.draws`."""
    problem, shared = record.problem, ()
    if record.together is not None:
        shared = record.together.shared
    vectors = _drawn(problem, record.numbers.at_solver, number, seed, shared)
    by_name = _by_name(problem, _values(problem, vectors))
    row = 0 if record.together is None else record.together.row
    single, shape = record.single, (*record.shape, number)
    return {
        name: of_all[row] if name in single else of_all.reshape(shape)
        for name, of_all in by_name.items()
    }


def _drawn(
    problem: Problem,
    ends: AtSolver,
    number: int,
    seed: int,
    shared: tuple[str, ...] = (),
) -> Vectors:
    """The solver's vectors, (N, number, n); NaN where there are none."""
    if not (isinstance(number, int) and number >= 1):
        raise ValueError(f"number is {number!r}; give how many draws, at least 1.")
    first = [k for k, name in enumerate(problem.varied) if name in shared]
    rest = [k for k, name in enumerate(problem.varied) if name not in shared]
    order = [*first, *rest]
    factors = factor_of(ends.covariance[:, order][:, :, order])
    random, limits = np.random.default_rng(seed), _limits(problem)
    vectors = np.empty((len(ends.x), number, len(order)))
    s, units = len(first), np.zeros((number, len(first)))
    if s:
        row = int(np.argmax(np.isfinite(factors[:, :s, :s]).all(axis=(1, 2))))
        common = Normal(
            mean=np.broadcast_to(ends.x[row, first], (1, number, s)),
            factor=factors[row : row + 1, :s, :s],
        )
        of_all = common.draws(random, limits.of(first).hold)
        vectors[:, :, first] = of_all
        units = common.units(of_all)[0]

    def hold(of_rest: Vectors, which: Bool[np.ndarray, "N number"]) -> np.ndarray:
        inside = limits.of(rest).hold(of_rest, which)
        if problem.ties:
            whole = vectors.copy()
            whole[:, :, rest] = of_rest
            inside &= _ties_hold(problem, whole, which)
        return inside

    each = Normal(
        mean=ends.x[:, None, rest]
        + np.einsum("Nls,ks->Nkl", factors[:, s:, :s], units),
        factor=factors[:, s:, s:],
    )
    vectors[:, :, rest] = each.draws(random, hold)
    return vectors


class Normal(NamedTuple):
    """Normal distributions, each of whose draws has a mean of its own."""

    mean: Float[np.ndarray, "N number v"]
    factor: Float[np.ndarray, "N v v"]

    def draws(self, random: np.random.Generator, hold: Callable) -> Vectors:
        """Draws for which `hold` is true; NaN of fits where it seldom is.

        Args:
            hold: (draws, which of them are new) -> which are inside; the others may say
                anything.
        """
        drawn = np.array(self.mean)
        wanted = np.isfinite(self.factor).all(axis=(1, 2))[:, None] & np.isfinite(
            self.mean
        ).all(axis=2)
        drawn[~wanted] = np.nan
        tried, kept = np.zeros(len(drawn), int), np.zeros(len(drawn), int)
        while wanted.any():
            units = np.zeros(drawn.shape)
            units[wanted] = random.standard_normal((int(wanted.sum()), drawn.shape[-1]))
            new = self.mean + np.einsum("Nij,Nkj->Nki", self.factor, units)
            drawn[wanted] = new[wanted]
            inside = hold(drawn, wanted) & wanted
            tried, kept = tried + wanted.sum(axis=1), kept + inside.sum(axis=1)
            wanted = wanted & ~inside
            hopeless = (tried >= ENOUGH) & (kept < LEAST * tried)
            drawn[hopeless], wanted[hopeless] = np.nan, False
        return drawn

    def units(self, drawn: Vectors) -> Vectors:
        """The independent numbers of variance 1 that made these draws."""
        if not np.isfinite(self.factor).all():
            return np.full(drawn.shape, np.nan)
        inverse = np.linalg.pinv(self.factor)
        return np.einsum("Nij,Nkj->Nki", inverse, drawn - self.mean)


class _Limits(NamedTuple):
    """Bounds of the solver's vector, or of some of it."""

    lower: Float[np.ndarray, " v"]
    upper: Float[np.ndarray, " v"]

    def of(self, places: list[int]) -> "_Limits":
        """Those of some places."""
        return _Limits(self.lower[places], self.upper[places])

    def hold(self, drawn: Vectors, which: Bool[np.ndarray, "N number"]) -> np.ndarray:
        """Which vectors are inside."""
        return np.all((drawn >= self.lower) & (drawn <= self.upper), axis=-1)


def _limits(problem: Problem) -> _Limits:
    n = len(problem.varied)
    lower, upper = problem.bounds or (np.full(n, -np.inf), np.full(n, np.inf))
    return _Limits(np.asarray(lower), np.asarray(upper))


def factor_of(covariance: Float[np.ndarray, "N n n"]) -> Float[np.ndarray, "N n n"]:
    """Lower Cholesky factors, also of what is singular; NaN where it is not finite."""
    n = covariance.shape[-1]
    with np.errstate(invalid="ignore"):
        size = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        unit = np.where(size > 0, size, 1)
        rest = covariance / (unit[:, :, None] * unit[:, None, :])
        factor = np.zeros_like(covariance)
        for j in range(n):
            column = rest[:, :, j] - np.einsum(
                "Nik,Nk->Ni", factor[:, :, :j], factor[:, j, :j]
            )
            pivot = column[:, j]
            is_left = ~(pivot <= 4 * n * np.finfo(float).eps)  # NaN stays
            root = np.sqrt(np.where(is_left, pivot, 1))
            factor[:, j:, j] = np.where(is_left, 1, 0)[:, None] * (
                column[:, j:] / root[:, None]
            )
        return size[:, :, None] * factor


# All parameters


def _values(problem: Problem, vectors: Vectors) -> Float[np.ndarray, "N number k"]:
    """All parameters, and what is derived from them, of the solver's vectors."""
    lead = vectors.shape[:-1]
    flat = vectors.reshape(math.prod(lead), vectors.shape[-1])
    length = bucket(len(flat)) - len(flat)
    padded = np.concatenate([flat, np.repeat(flat[-1:], length, axis=0)])
    traced = traced_function(problem.model)
    values = computed(_everything, problem, padded, traced=traced)[: len(flat)]
    return values.reshape(*lead, -1)


def _everything(problem: Problem, x: Float[Array, "M n"]) -> Float[Array, "M k"]:
    values = jax.vmap(everything, (None, 0))(problem, x)
    is_number = jax.numpy.isfinite(x).all(axis=1, keepdims=True)
    return jax.numpy.where(is_number, values, np.nan)


def _ties_hold(
    problem: Problem, vectors: Vectors, which: Bool[np.ndarray, "N number"]
) -> np.ndarray:
    """Which of some vectors leave what is tied within its bounds."""
    holds, limits = np.ones(which.shape, bool), problem.model.bounds
    values = _values(problem, vectors[which][None])[0]
    inside = np.ones(len(values), bool)
    for name in problem.ties:
        lower, upper = limits[name]
        column = values[:, problem.names.index(name)]
        inside &= (column >= lower) & (column <= upper)
    holds[which] = inside
    return holds


def _by_name(problem: Problem, values: Any) -> dict[str, np.ndarray]:
    names = [*problem.names, *problem.derived_names]
    return {name: values[..., k] for k, name in enumerate(names)}
