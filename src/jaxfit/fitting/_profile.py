"""Walking away from a minimum: how far, until chi-square has risen by so much.

Some parameters are held, on a ray that leaves the solution, and the others are fitted
anew at every distance t. With ζ(t) = √(chi²(t) - chi²(0)), which is a straight line for
a linear model (Bates and Watts, Nonlinear Regression Analysis, 1988, section 6.1), the
place where ζ reaches its target is found by Newton's method in t; dζ/dt follows from
the gradient at the fitted point. All rays walk together, in one batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _host
from jaxfit._batch import solve_batch
from jaxfit._compile import compiled
from jaxfit._options import Options
from jaxfit.fitting._problem import Data, Problem
from jaxfit.fitting._program import Case, Manner, named, shared_weights

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
    with _host.double_precision(named(problem.model)):
        found = compiled(_walk, problem, (case, manner, rays, targets))
        return Ends(*map(np.asarray, found))


def trace(
    problem: Problem, case: Case, manner: Manner, rays: Rays, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ζ and x at given places of rays, (r,) and (r, n)."""
    with _host.double_precision(named(problem.model)):
        found = compiled(_trace, problem, (case, manner, rays, t))
        return np.asarray(found[0]), np.asarray(found[1])


def _limits(problem, rays):
    n = rays.x.shape
    if problem.bounds is None:
        return jnp.full(n, -jnp.inf), jnp.full(n, jnp.inf)
    return tuple(map(jnp.asarray, problem.bounds))


def _room(problem, rays):
    """The bounds towards which held parameters move, and how far that is, (r, n)."""
    lower, upper = _limits(problem, rays)
    bound = jnp.where(rays.tangent > 0, upper, lower)
    moves = rays.held & (rays.tangent != 0)
    room = (bound - rays.x) / jnp.where(moves, rays.tangent, 1)
    return bound, jnp.where(moves, room, jnp.inf)


def _fitted(problem, case, manner, rays, t, start):
    """The fits with the held parameters at t: x, ζ, dζ/dt, success."""
    lower, upper = _limits(problem, rays)
    bound, room = _room(problem, rays)
    at = rays.x + t[:, None] * rays.tangent
    at = jnp.where(t[:, None] < room, at, bound)  # to the last bit
    start = jnp.where(rays.held, at, jnp.clip(start, lower, upper))
    bounds = jnp.where(rays.held, start, lower), jnp.where(rays.held, start, upper)
    x, cost, gradient, success = solve_batch(
        problem.function,
        start,
        case.data,
        in_axes=(0, Data(None, None, None), 0),
        bounds=bounds,
        weights=shared_weights(problem, case.valid, len(t)),
        loss=manner.loss,
        options=INNER,
        keep=lambda s: (s.x, s.cost, s.gradient, s.success),
    )
    slope = jnp.sum(jnp.where(rays.held, gradient * rays.tangent, 0), axis=1)
    zeta = jnp.sqrt(jnp.maximum(2 * (cost - rays.cost), 0))
    return x, zeta, slope / jnp.where(zeta > 0, zeta, 1), success


def _trace(problem, arguments):
    case, manner, rays, t = arguments
    start = rays.x + t[:, None] * rays.tangent
    x, zeta, _, success = _fitted(problem, case, manner, rays, t, start)
    x = jax.vmap(problem.of_varied)(x)
    return jnp.where(success, zeta * jnp.sign(t), jnp.nan), x


def _walk(problem, arguments):
    case, manner, rays, targets = arguments
    farthest = jnp.min(_room(problem, rays)[1], axis=1)
    most = jnp.minimum(farthest, FARTHEST * targets)
    is_bound = most < FARTHEST * targets

    def unfinished(carry):
        return (carry["round"] < MAX_ROUNDS) & ~jnp.all(carry["done"])

    def step(carry):
        t, last = carry["t"], carry["x"]
        x, zeta, slope, success = _fitted(problem, case, manner, rays, t, last)
        short = success & (zeta < targets)
        low = jnp.where(short, t, carry["low"])
        high = jnp.where(short, carry["high"], t)
        reached = success & (jnp.abs(zeta - targets) <= TOLERANCE * targets)
        narrow = jnp.isfinite(high) & (high - low <= 1e-12 * high)
        ended = short & (t >= most)
        newton = t - (zeta - targets) / jnp.where(slope > 0, slope, 1)
        wider = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2 * low)
        sound = success & (slope > 0) & (newton > low) & (newton < high)
        following = jnp.minimum(jnp.where(sound, newton, wider), most)
        done = carry["done"]
        finishes = done | reached | narrow | ended
        ratio = jnp.where(t > 0, following / jnp.where(t > 0, t, 1), 1)
        ahead = rays.x + (x - rays.x) * ratio[:, None]
        ahead = jnp.where(success[:, None], ahead, rays.x)
        keep = done[:, None]
        return {
            "round": carry["round"] + 1,
            "t": jnp.where(finishes, t, following),
            "x": jnp.where(keep, last, jnp.where(finishes[:, None], x, ahead)),
            "low": jnp.where(done, carry["low"], low),
            "high": jnp.where(done, carry["high"], high),
            "zeta": jnp.where(done, carry["zeta"], jnp.where(success, zeta, jnp.nan)),
            "done": finishes,
        }

    start = jnp.minimum(targets, most)
    carry = {
        "round": 0,
        "t": start,
        "x": rays.x + start[:, None] * rays.tangent,
        "low": jnp.zeros_like(start),
        "high": jnp.full_like(start, jnp.inf),
        "zeta": jnp.zeros_like(start),
        "done": jnp.zeros(start.shape, bool),
    }
    end = lax.while_loop(unfinished, step, carry)
    short = end["zeta"] < targets * (1 - 1e-6)
    reached = end["done"] & (~short | is_bound)
    x = jax.vmap(problem.of_varied)(end["x"])
    return jnp.where(reached, end["t"], jnp.inf), x


def ray_context(fit: Any) -> tuple[np.ndarray, float]:
    """The inverse Gram matrix of a fit's free directions, and chi-square's scale s²."""
    scale = 1.0 if fit.absolute_sigma else fit.reduced_chi_square
    return fit.covariance / scale, scale
