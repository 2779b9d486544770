"""Walking away from a minimum: how far, until chi-square has risen by so much.

Some parameters are held, on a ray that leaves the solution, and the others are fitted
anew at every distance t. With ζ(t) = √(chi²(t) - chi²(0)), which is a straight line for
a linear model (Bates and Watts, Nonlinear Regression Analysis, 1988, section 6.1), the
place where ζ reaches its target is found by Newton's method in t; dζ/dt follows from
the gradient at the fitted point. All rays walk together, in one batch.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxfit._core.options import Options
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._programs import Axes, Case, Manner, for_solver
from jaxfit.fitting._run import of_varied, run_fits

MAX_ROUNDS = 30
FARTHEST = 1e3  # times where a linear model would be: no end is looked for beyond
TOLERANCE = 1e-6  # of ζ, relative
INNER = Options(ftol=1e-10, gtol=1e-6, xtol=1e-8)  # of the fits: ζ to 1e-7 and better


class Rays(NamedTuple):
    """Rays from a solution; in units in which ζ(t) = t for a linear model."""

    held: Any  # (r, n), booleans
    tangent: Any  # (r, n), dx/dt, of the others as a linear model has it
    cost: Any  # at the solution
    x: Any  # (n,), the solution

    def of(self, which: np.ndarray) -> "Rays":
        """Some of them."""
        return self._replace(held=self.held[which], tangent=self.tangent[which])


class Ends(NamedTuple):
    """Where rays end."""

    t: np.ndarray  # (r,), infinite if the target is not reached
    x: np.ndarray  # (r, n)


def rays_of(
    held: np.ndarray,
    directions: np.ndarray,
    covariance: np.ndarray,
    cost: float,
    x: np.ndarray,
) -> Rays:
    """Rays along which the held parameters move in given directions.

    Args:
        held: (r, n).
        directions: (r, n), zero where a parameter is not held; scaled by their Wald
            length here.
        covariance: of a chi-square, the inverse Gram matrix, finite.
    """
    tangents = np.zeros_like(directions)
    for k, (which, direction) in enumerate(zip(held, directions, strict=True)):
        inner = covariance[np.ix_(which, which)]
        solved = np.linalg.solve(inner, direction[which])
        length = np.sqrt(direction[which] @ solved)
        tangents[k] = covariance[:, which] @ solved / length
        tangents[k][which] = direction[which] / length
    return Rays(held, tangents, np.asarray(cost), np.asarray(x))


def walk(
    problem: Problem, case: Case, manner: Manner, rays: Rays, targets: np.ndarray
) -> Ends:
    """The ends of rays, (r,); targets are those of ζ."""
    farthest = np.min(_room(problem, rays)[1], axis=1)
    most = np.minimum(farthest, FARTHEST * targets)
    is_bound = most < FARTHEST * targets
    t = np.minimum(targets, most)
    x, low = rays.x + t[:, None] * rays.tangent, np.zeros_like(t)
    high, zeta = np.full_like(t, np.inf), np.zeros_like(t)
    going = np.arange(len(t))
    for _ in range(MAX_ROUNDS):
        if not len(going):
            break
        now, target, limit = t[going], targets[going], most[going]
        found = _fitted(problem, case, manner, rays.of(going), now, x[going])
        success, slope = found.success, found.slope
        short = success & (found.zeta < target)
        low[going] = np.where(short, now, low[going])
        high[going] = np.where(short, high[going], now)
        zeta[going] = np.where(success, found.zeta, np.nan)
        below, above = low[going], high[going]
        reached = success & (np.abs(found.zeta - target) <= TOLERANCE * target)
        with np.errstate(invalid="ignore"):
            narrow = np.isfinite(above) & (above - below <= 1e-12 * above)
        finishes = reached | narrow | (short & (now >= limit))
        newton = now - (found.zeta - target) / np.where(slope > 0, slope, 1)
        wider = np.where(np.isfinite(above), 0.5 * (below + above), 2 * below)
        sound = success & (slope > 0) & (newton > below) & (newton < above)
        following = np.minimum(np.where(sound, newton, wider), limit)
        ratio = np.where(now > 0, following / np.where(now > 0, now, 1), 1)
        ahead = rays.x + (found.x - rays.x) * ratio[:, None]
        ahead = np.where(success[:, None], ahead, rays.x)
        x[going] = np.where(finishes[:, None], found.x, ahead)
        t[going] = np.where(finishes, now, following)
        going = going[~finishes]
    done = np.ones(len(t), bool)
    done[going] = False
    reached = done & (~(zeta < targets * (1 - 1e-6)) | is_bound)
    return Ends(np.where(reached, t, np.inf), of_varied(problem, x))


def trace(
    problem: Problem, case: Case, manner: Manner, rays: Rays, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ζ and x at given places of rays, (r,) and (r, n)."""
    start = rays.x + t[:, None] * rays.tangent
    found = _fitted(problem, case, manner, rays, t, start)
    zeta = np.where(found.success, found.zeta * np.sign(t), np.nan)
    return zeta, of_varied(problem, found.x)


def _limits(problem, rays):
    if problem.bounds is None:
        return np.full(rays.x.shape, -np.inf), np.full(rays.x.shape, np.inf)
    return problem.bounds


def _room(problem, rays):
    """The bounds towards which held parameters move, and how far that is, (r, n)."""
    lower, upper = _limits(problem, rays)
    bound = np.where(rays.tangent > 0, upper, lower)
    moves = rays.held & (rays.tangent != 0)
    room = (bound - rays.x) / np.where(moves, rays.tangent, 1)
    return bound, np.where(moves, room, np.inf)


class _Fitted(NamedTuple):
    """Fits with some parameters held at places of their rays."""

    x: np.ndarray  # (r, n)
    zeta: np.ndarray
    slope: np.ndarray  # dζ/dt
    success: np.ndarray


def _fitted(problem, case, manner, rays, t, start) -> _Fitted:
    """The fits with the held parameters at t."""
    lower, upper = _limits(problem, rays)
    bound, room = _room(problem, rays)
    at = rays.x + t[:, None] * rays.tangent
    at = np.where(t[:, None] < room, at, bound)  # to the last bit
    start = np.where(rays.held, at, np.clip(start, lower, upper))
    bounds = np.where(rays.held, start, lower), np.where(rays.held, start, upper)
    found = run_fits(
        problem,
        case._replace(bounds=bounds),
        Axes(None, None, 0, shared=True),
        start,
        manner._replace(options=INNER, absolute=np.bool_(True)),
    )
    gradient, cost = found["gradient"], found["cost"]
    slope = np.sum(np.where(rays.held, gradient * rays.tangent, 0), axis=1)
    zeta = np.sqrt(np.maximum(2 * (cost - rays.cost), 0))
    slope = slope / np.where(zeta > 0, zeta, 1)
    return _Fitted(for_solver(found, "x"), zeta, slope, found["status"] > 0)


def ray_context(fit: Any) -> tuple[np.ndarray, float]:
    """The inverse Gram matrix of a fit's free directions, and chi-square's scale s²."""
    scale = 1.0 if fit.absolute_sigma else fit.reduced_chi_square
    return fit.covariance / scale, scale
