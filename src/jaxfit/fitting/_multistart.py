"""Where a fit starts: checks of what is given, and many starts at once."""

from typing import Any

import numpy as np

from jaxfit.fitting._guesses import run_starts
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._programs import Axes, Case, Manner, for_solver
from jaxfit.fitting._run import run_batch

SAME_COST = 1e-6  # relative: ends of one minimum
KEPT = 0.6  # of the points, for a guess from a part of them


def check_inside(problem: Problem, given: dict[str, Any]) -> None:
    """Refuse starts outside their bounds."""
    if problem.lower is None:
        return
    for k, name in enumerate(problem.varied):
        lower, upper = problem.lower[k], problem.upper[k]
        if name not in given:
            continue
        start = np.asarray(given[name])
        outside = ~((start >= lower) & (start <= upper))
        if outside.any():
            which = start if start.ndim == 0 else f"{start[outside].flat[0]} somewhere"
            raise ValueError(
                f"p0[{name!r}] is {which}, outside its bounds ({lower}, {upper})."
            )


def best_of_many(
    problem: Problem, case: Case, manner: Manner, number: int, seed: int
) -> tuple[Case, list[tuple[float, int]]]:
    """The case with the start whose fit has the least cost, and all minima.

    Half of the starts are guesses, the first from all the data and the others from
    random parts of them: what a guess takes for a peak or a frequency there is where
    another minimum may be. The other half lie about the first. Minima are told apart by
    their cost, so that those that only differ by the names of exchangeable parts count
    once.
    """
    if not (isinstance(number, int) and number >= 1):
        raise ValueError(f"starts is {number!r}; give a whole number of at least 1.")
    parts = _parts(problem, case, number // 2, seed)
    known = {n: np.broadcast_to(v, len(parts)) for n, v in case.starts.items()}
    guesses = run_starts(
        problem, Case(case.data, parts, known), Axes(None, 0, shared=True)
    )
    first = guesses[0]
    lower, upper = problem.bounds or (None, None)
    around = spread(first, lower, upper, number - len(guesses), seed)
    starts = np.concatenate([guesses, around])
    cases = Case(
        case.data, case.valid, dict(zip(problem.varied, starts.T, strict=True))
    )
    found = run_batch(problem, cases, Axes(None, None, shared=True), manner)
    cost = np.where(found["status"] > 0, found["cost"], np.inf)
    best = int(np.argmin(cost))
    chosen = for_solver(found, "x")[best] if np.isfinite(cost[best]) else first
    starts_of_best = dict(zip(problem.varied, chosen, strict=True))
    return Case(case.data, case.valid, starts_of_best), _distinct(cost)


def _parts(problem: Problem, case: Case, number: int, seed: int) -> np.ndarray:
    """Which points count for each of several guesses: all, and then parts.

    By turns a random part of the points, and all outside a random interval.
    """
    y = case.data.y
    valid = np.ones(np.shape(y), bool) if case.valid is None else np.asarray(case.valid)
    is_guessed = any(name not in case.starts for name in problem.varied)
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


def _distinct(costs: np.ndarray) -> list[tuple[float, int]]:
    """Costs that differ, ascending, and how many fits have each."""
    found: list[tuple[float, int]] = []
    for cost in np.sort(costs[np.isfinite(costs)]):
        if found and cost - found[-1][0] <= SAME_COST * abs(cost) + 1e-300:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((float(cost), 1))
    return found


def spread(first, lower, upper, number: int, seed: int) -> np.ndarray:
    """Quasi-random starts (number, n) about a first one.

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
    lower = np.full(n, -np.inf) if lower is None else lower
    upper = np.full(n, np.inf) if upper is None else upper
    has_lower, has_upper = np.isfinite(lower), np.isfinite(upper)
    both = has_lower & has_upper
    low, high = np.where(has_lower, lower, 0), np.where(has_upper, upper, 0)
    factor = 5.0 ** (2 * u - 1)
    away_low = np.where(first > low, first - low, np.maximum(np.abs(first), 1))
    away_high = np.where(first < high, high - first, np.maximum(np.abs(first), 1))
    size = np.where(first == 0, 1.0, np.abs(first))
    return np.where(
        both,
        low + u * (high - low),
        np.where(
            has_lower,
            low + factor * away_low,
            np.where(
                has_upper, high - factor * away_high, first + 3 * size * (2 * u - 1)
            ),
        ),
    )
