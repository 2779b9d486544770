"""Walking away from a minimum: how far, until chi-square has risen by so much.

Some parameters are held, on a ray that leaves the solution, and the others are fitted
anew at every distance t. With ζ(t) = √(chi²(t) - chi²(0)), which is a straight line for
a linear model (Bates and Watts, Nonlinear Regression Analysis, 1988, section 6.1), the
place where ζ reaches its target is found by Newton's method in t; dζ/dt follows from
the gradient at the fitted point. All rays walk together, in one batch.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxfit._core.options import Options
from jaxfit.fitting._points import Axes, DataSet
from jaxfit.fitting._problem import Method, Problem
from jaxfit.fitting._record import Record
from jaxfit.fitting._run import numbers_from, of_varied
from jaxfit.fitting._together import check_alone

MAX_ROUNDS = 30
FARTHEST = 1e3  # times where a linear model would be: no end is looked for beyond
TOLERANCE = 1e-6  # of ζ, relative
INNER = Options(ftol=1e-10, gtol=1e-6, xtol=1e-8)  # of the fits: ζ to 1e-7 and better


Places = Float[np.ndarray, " r"]  # of points on rays
Positions = Float[np.ndarray, "r n"]


class Refit(NamedTuple):
    """What is fitted anew on the rays."""

    problem: Problem
    data_set: DataSet
    method: Method

    @classmethod
    def of(cls, record: Record) -> "Refit":
        """The refits of a fit."""
        check_alone(record.together, "A profile")
        return cls(
            problem=record.problem,
            data_set=record.observed.data_set,
            method=record.method._replace(options=INNER, absolute=np.bool_(True)),
        )


class Rays(NamedTuple):
    """Rays from a solution; in units in which ζ(t) = t for a linear model."""

    held: np.ndarray  # (r, n), booleans
    tangent: np.ndarray  # (r, n), dx/dt, of the others as a linear model has it
    cost: np.ndarray  # at the solution
    x: np.ndarray  # (n,), the solution

    @classmethod
    def along(
        cls,
        directions: Positions,
        held: Bool[np.ndarray, "r n"],
        covariance: Float[np.ndarray, "n n"],
        cost: float,
        x: Float[np.ndarray, " n"],
    ) -> "Rays":
        """Rays along which the held parameters move in some directions.

        Args:
            directions: zero where a parameter is not held; scaled by their Wald length
                here.
            covariance: of a chi-square, the inverse Gram matrix, finite.
        """
        tangents = np.zeros_like(directions)
        for k, (which, direction) in enumerate(zip(held, directions, strict=True)):
            inner = covariance[np.ix_(which, which)]
            solved = np.linalg.solve(inner, direction[which])
            length = np.sqrt(direction[which] @ solved)
            tangents[k] = covariance[:, which] @ solved / length
            tangents[k][which] = direction[which] / length
        return cls(held, tangents, np.asarray(cost), np.asarray(x))

    def of(self, which: np.ndarray) -> "Rays":
        """Some of the rays."""
        return self._replace(held=self.held[which], tangent=self.tangent[which])

    def at(self, t: Places) -> Positions:
        """The points of a linear model at some distances."""
        return self.x + t[:, None] * self.tangent


class Ends(NamedTuple):
    """Where rays end."""

    t: np.ndarray  # (r,), infinite if the target is not reached
    x: np.ndarray  # (r, n)


class Traces(NamedTuple):
    """What is found at places of rays."""

    zeta: np.ndarray  # (r,)
    x: np.ndarray  # (r, n)


def walk(refit: Refit, rays: Rays, targets: Places) -> Ends:
    """The ends of rays; targets are those of ζ."""
    problem = refit.problem
    farthest = np.min(_reach(problem, rays).distance, axis=1)
    most = np.minimum(farthest, FARTHEST * targets)
    is_bound = most < FARTHEST * targets
    t = np.minimum(targets, most)
    x, bracket = rays.at(t), _Bracket(np.zeros_like(t), np.full_like(t, np.inf))
    zeta = np.zeros_like(t)
    going = np.arange(len(t))
    for _ in range(MAX_ROUNDS):
        if not len(going):
            break
        # fit all that go on, and note on which side of the target they are
        now, target, limit = t[going], targets[going], most[going]
        fits = _fitted(refit, rays.of(going), now, x[going])
        short = fits.success & (fits.zeta < target)
        bracket.low[going] = np.where(short, now, bracket.low[going])
        bracket.high[going] = np.where(short, bracket.high[going], now)
        zeta[going] = np.where(fits.success, fits.zeta, np.nan)
        # the end, or Newton's next distance, and from where to fit there
        around = _Bracket(bracket.low[going], bracket.high[going])
        reached = fits.success & (np.abs(fits.zeta - target) <= TOLERANCE * target)
        finishes = reached | around.is_narrow | (short & (now >= limit))
        following = np.minimum(_next(fits, now, target, around), limit)
        ratio = np.where(now > 0, following / np.where(now > 0, now, 1), 1)
        ahead = rays.x + (fits.x - rays.x) * ratio[:, None]
        ahead = np.where(fits.success[:, None], ahead, rays.x)
        x[going] = np.where(finishes[:, None], fits.x, ahead)
        t[going] = np.where(finishes, now, following)
        going = going[~finishes]
    # what ended below its target has met a bound, or has no end
    done = np.ones(len(t), bool)
    done[going] = False
    reached = done & (~(zeta < targets * (1 - 1e-6)) | is_bound)
    return Ends(np.where(reached, t, np.inf), of_varied(problem, x))


def trace(refit: Refit, rays: Rays, t: Places) -> Traces:
    """ζ and x at some places of rays."""
    fits = _fitted(refit, rays, t, rays.at(t))
    zeta = np.where(fits.success, fits.zeta * np.sign(t), np.nan)
    return Traces(zeta, of_varied(refit.problem, fits.x))


class _Bracket(NamedTuple):
    """Between which distances rays end."""

    low: np.ndarray  # (r,)
    high: np.ndarray  # (r,), infinite where nothing is known

    @property
    def is_narrow(self) -> Bool[np.ndarray, " r"]:
        """Whether the ends are known to the last digits."""
        with np.errstate(invalid="ignore"):
            return np.isfinite(self.high) & (self.high - self.low <= 1e-12 * self.high)


class _Reach(NamedTuple):
    """How far held parameters may move, (r, n)."""

    bound: np.ndarray  # towards which they move
    distance: np.ndarray  # of the bound, in t


class _Fitted(NamedTuple):
    """Fits with some parameters held at places of their rays."""

    x: np.ndarray  # (r, n)
    zeta: np.ndarray
    slope: np.ndarray  # dζ/dt
    success: np.ndarray


def _next(fits: _Fitted, now: Places, target: Places, around: _Bracket) -> Places:
    """Newton's step if it stays within the bracket; else halfway, or twice as far."""
    slope = fits.slope
    newton = now - (fits.zeta - target) / np.where(slope > 0, slope, 1)
    middle = 0.5 * (around.low + around.high)
    wider = np.where(np.isfinite(around.high), middle, 2 * around.low)
    is_inside = (newton > around.low) & (newton < around.high)
    return np.where(fits.success & (slope > 0) & is_inside, newton, wider)


def _limits(problem: Problem, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """The bounds (lower, upper) of the problem, (n,)."""
    if problem.bounds is None:
        return np.full(rays.x.shape, -np.inf), np.full(rays.x.shape, np.inf)
    return problem.bounds


def _reach(problem: Problem, rays: Rays) -> _Reach:
    lower, upper = _limits(problem, rays)
    bound = np.where(rays.tangent > 0, upper, lower)
    moves = rays.held & (rays.tangent != 0)
    distance = (bound - rays.x) / np.where(moves, rays.tangent, 1)
    return _Reach(bound, np.where(moves, distance, np.inf))


def _fitted(refit: Refit, rays: Rays, t: Places, start: Positions) -> _Fitted:
    """The fits with the held parameters at t."""
    lower, upper = _limits(refit.problem, rays)
    reach = _reach(refit.problem, rays)
    at = np.where(t[:, None] < reach.distance, rays.at(t), reach.bound)  # all digits
    start = np.where(rays.held, at, np.clip(start, lower, upper))
    bounds = np.where(rays.held, start, lower), np.where(rays.held, start, upper)
    numbers = numbers_from(
        refit.problem,
        refit.data_set._replace(bounds=bounds),
        Axes(bounds=0, shared=True),
        start,
        refit.method,
    )
    slope = np.sum(np.where(rays.held, numbers.gradient * rays.tangent, 0), axis=1)
    zeta = np.sqrt(np.maximum(2 * (numbers.cost - rays.cost), 0))
    return _Fitted(
        x=numbers.at_solver.x,
        zeta=zeta,
        slope=slope / np.where(zeta > 0, zeta, 1),
        success=numbers.success,
    )
