"""Many starts of one fit: guesses from parts of the data, and quasi-random ones."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxfit.fitting._guesses import start_vectors
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Method, Problem
from jaxfit.fitting._run import batch_numbers

SAME_COST = 1e-6  # relative: ends of one minimum
KEPT = 0.6  # of the points, for a guess from a part of them

Minima = list[tuple[float, int]]  # the cost, and how many fits ended there


class Best(NamedTuple):
    """The data set with the start whose fit has the least cost, and all minima."""

    data_set: DataSet
    minima: Minima


def best_of_many(
    problem: Problem, data_set: DataSet, method: Method, number: int, seed: int
) -> Best:
    """The best of many starts.

    Half of the starts are guesses, the first from all the data and the others from
    random parts of them: what a guess takes for a peak or a frequency there is where
    another minimum may be. The other half lie about the first. Minima are told apart by
    their cost, so that those that only differ by the names of exchangeable parts count
    once.
    """
    if not (isinstance(number, int) and number >= 1):
        raise ValueError(f"starts is {number!r}; give a whole number of at least 1.")
    parts = _parts(problem, data_set, number // 2, seed)
    known = {n: np.broadcast_to(v, len(parts)) for n, v in data_set.starts.items()}
    guesses = start_vectors(
        problem, DataSet(data_set.data, parts, known), Axes(valid=0, shared=True)
    )
    first = guesses[0]
    around = quasi_random_starts(
        first, problem.bounds, number=number - len(guesses), seed=seed
    )
    starts = np.concatenate([guesses, around])
    from_each = data_set._replace(
        starts=dict(zip(problem.varied, starts.T, strict=True))
    )
    numbers = batch_numbers(problem, from_each, Axes(shared=True), method)
    cost = np.where(numbers.success, numbers.cost, np.inf)
    best = int(np.argmin(cost))
    chosen = numbers.at_solver.x[best] if np.isfinite(cost[best]) else first
    from_best = dict(zip(problem.varied, chosen, strict=True))
    return Best(data_set._replace(starts=from_best), _distinct(cost))


def _parts(
    problem: Problem, data_set: DataSet, number: int, seed: int
) -> Bool[np.ndarray, "parts ..."]:
    """Which points count for each of several guesses: all, and then parts.

    By turns a random part of the points, and all outside a random interval.
    """
    valid = np.ones(np.shape(data_set.data.y), bool)
    if data_set.valid is not None:
        valid = np.asarray(data_set.valid)
    is_guessed = any(name not in data_set.starts for name in problem.varied)
    if number < 2 or not (is_guessed and problem.model.starts_from_data):
        return valid[None]
    random = np.random.default_rng(seed)
    scattered = random.uniform(size=(number, valid.size)) < KEPT
    middle, width = random.uniform(size=(2, number, 1))
    away = np.abs(np.arange(valid.size) / valid.size - middle)
    outside = away > 0.5 * (1 - KEPT) * width
    kept = np.where(np.arange(number)[:, None] % 2 == 0, outside, scattered)
    kept[0] = True
    return valid & kept.reshape(number, *valid.shape)


def _distinct(costs: Float[np.ndarray, " N"]) -> Minima:
    """Costs that differ, ascending, and how many fits have each."""
    minima: Minima = []
    for cost in np.sort(costs[np.isfinite(costs)]):
        if minima and cost - minima[-1][0] <= SAME_COST * abs(cost) + 1e-300:
            least, count = minima[-1]
            minima[-1] = least, count + 1
        else:
            minima.append((float(cost), 1))
    return minima


def quasi_random_starts(
    first: Float[np.ndarray, " n"],
    bounds: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None,
    *,
    number: int,
    seed: int,
) -> Float[np.ndarray, "number n"]:
    """Quasi-random starts about a first one.

    Between two finite bounds they are even; beyond one bound from a fifth to five times
    the first's distance from it; without bounds within three times its size, of 1 at
    least. The sequence is additive with the powers of the root of t^(n+1) = t + 1
    (Roberts, 2018), which fills n dimensions more evenly than random numbers do.
    """
    n = len(first)
    root = 1.5
    for _ in range(40):
        root = (1 + root) ** (1 / (n + 1))
    shift = np.random.default_rng(seed).uniform(size=n)
    step = root ** -np.arange(1.0, n + 1)
    u = (shift + np.arange(number)[:, None] * step) % 1
    lower, upper = (
        (np.full(n, -np.inf), np.full(n, np.inf)) if bounds is None else bounds
    )
    has_lower, has_upper = np.isfinite(lower), np.isfinite(upper)
    low, high = np.where(has_lower, lower, 0), np.where(has_upper, upper, 0)
    factor = 5.0 ** (2 * u - 1)
    away_low = np.where(first > low, first - low, np.maximum(np.abs(first), 1))
    away_high = np.where(first < high, high - first, np.maximum(np.abs(first), 1))
    size = np.where(first == 0, 1.0, np.abs(first))
    return np.select(
        [has_lower & has_upper, has_lower, has_upper],
        [low + u * (high - low), low + factor * away_low, high - factor * away_high],
        first + 3 * size * (2 * u - 1),
    )
