"""Kinks: what becomes of a fit that can go no further because its slope jumps.

At a minimum on a kink of the residuals the gradient is not small. It is one if nothing
descends: if the convex hull of the gradients about the point holds one that passes the
certificate. They are sampled (Burke, Lewis and Overton, "A robust gradient sampling
algorithm for nonsmooth, nonconvex optimization", SIAM J. Optim. 15, 2005), each where
the least-norm element of the hull so far promises a lower cost, as in the method of
Wolfe (Math. Programming Study 3, 1975). One trip evaluates one sample:

    stalled -> SAMPLE -> ADOPT -> ALONG -> SAMPLE -> ADOPT ... -> CHECK -> KINK

Once the hull is known its least-norm element is adopted in place of the gradient, and
the ordinary trip does all else with it: it certifies the point, or steps along the
kink, where the cost may still fall. What passes is sampled again near by, where the
hull of a kink has the same size, and that of a curvature has not; and in the end no
cost may be lower in any of some more directions.

All of it is rare, and written for one fit, as one piece for all modes: what is compiled
with every fit should be little.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxfit._bounds import Bounds
from jaxfit._linearize import Linearization, with_gradient
from jaxfit._small import (
    Flag,
    Matrix,
    Scalar,
    Vector,
    add_diagonal,
    choose,
    inner,
    matmul,
    matvec,
    norm,
    outer,
    transpose,
    unit_diagonal,
    where_needed,
)
from jaxfit._solution import RUNNING, Status, certificate_limit

OFF, SAMPLE, ADOPT, ALONG, CHECK, OVER = range(6)  # modes of a search

MOST = 8  # the hull has room for the gradients of so many kinks at one point

# Samples are so far away, in units of the certificate's limit, columns scaled to one:
# so near that a smooth gradient is the same, so far that the cost shows its slope.
RADIUS = 0.05
NEARER = 1 / 32  # of it, the second time

PROGRESS = 0.99  # of the least norm, if a sample was worth while
DESCENT = 0.1  # of what the least-norm element promises, if the cost falls
KINKED = 4  # times what the radius changes in a smooth gradient: a kink
ALIKE = 0.8  # of the size of the hull further out: that of the same kink
HULL_TRIPS = 1000


class Search(eqx.Module):
    """What a fit knows of the kink on which it has stalled."""

    mode: Int[Array, "*lanes"]
    turn: Int[Array, "*lanes"]  # samples in this mode
    moved: Flag  # along the kink
    near: Flag  # whether samples are taken near by
    extent: Scalar  # the least size of a hull about a kink
    length: Scalar  # of the slope
    corners: Float[Array, "m n *lanes"]  # gradients, the first that of the point
    weights: Float[Array, "m *lanes"]  # of the corners in the least-norm element
    slope: Vector  # that element

    @classmethod
    def off(cls, x: Vector) -> "Search":
        """None."""
        zeros = jnp.zeros_like(x)
        none = zeros[0].astype(jnp.int32)
        corners = jnp.stack([zeros] * (min(len(x), MOST) + 2))
        return cls(
            mode=none + OFF,
            turn=none,
            moved=none != 0,
            near=none != 0,
            extent=zeros[0],
            length=zeros[0],
            corners=corners,
            weights=corners[:, 0],
            slope=zeros,
        )

    @property
    def samples(self) -> Flag:
        """Whether the trial is a sample, and not a step."""
        return (self.mode == SAMPLE) | (self.mode == CHECK)

    @property
    def adopts(self) -> Flag:
        """Whether the trial is the point itself, with the slope for its gradient."""
        return self.mode == ADOPT

    def adopted(self, linearization: Linearization) -> Linearization:
        """The linearization at the trial point, with the slope where it adopts that."""
        return where_needed(
            self.adopts,
            with_gradient,
            lambda linearization, slope: linearization,
            *(linearization, self.slope),
        )

    def is_wanted(self, status, finishing) -> Flag:
        """Whether `searched` is to decide what follows a trip with this end."""
        stalled = (status == Status.STALLED) & ~finishing
        return jnp.where(self.mode == OFF, stalled, self.mode != OVER)


class Turn(NamedTuple):
    """What follows a trip of a search."""

    search: Search
    trial: Any
    status: Int[Array, "*lanes"]
    finishing: Flag

    @classmethod
    def of(cls, state) -> "Turn":
        """What a state says of it."""
        return cls(state.search, state.trial, state.status, state.finishing)


def searched(bounds: Bounds | None, before, after, sample: Linearization) -> Turn:
    """What follows a trip of a search, or a fit that has stalled.

    Args:
        bounds: of the fit.
        before, after: its states about the trip; `after` knows of no search.
        sample: the linearization at the trial point.
    """
    search, here = before.search, _Here.of(bounds, after.point)
    m = len(search.weights)
    full = after.status == Status.MAX_STEPS
    mode = jnp.where(full, OVER, search.mode)
    running, moved = after.status == RUNNING, after.steps > before.steps
    won = ~running & (after.status > 0)
    seen = _Seen.of(here, before, sample)

    # ADOPT and ALONG: the point is certified, or a step leads on
    adopted, along, checking = mode == ADOPT, mode == ALONG, mode == CHECK
    steps = (adopted | along) & running
    passes = won & (adopted | (along & ~moved))
    arrives, leaves = along & running & moved, along & won & moved

    # a hull is begun where it stalls, after a step, and a second time near by
    nears = passes & ~search.near
    begins = (mode == OFF) | arrives | nears
    gradient = jnp.where(nears, search.corners[0], after.point.gradient)
    gradient = jnp.where(begins, gradient, seen.gradient)
    spare = jnp.arange(m) == jnp.argmin(search.weights[1:]) + 1
    put = begins | (spare & (mode == SAMPLE))
    corners = jnp.where(put[:, None], gradient, search.corners)
    hull = Hull.of(here, corners)

    # SAMPLE: one more corner, unless the hull is complete or there is no kink
    sampling = (mode == SAMPLE) & seen.continuous
    descends = seen.change <= DESCENT * inner(search.slope, seen.shift)
    grows = sampling & ~descends & (hull.length < PROGRESS * search.length)
    turn = jnp.where(grows | checking, search.turn + 1, 0)
    goes_on = grows & ~hull.certified & (turn < 2 * m)
    extent = jnp.where(grows, hull.extent, here.extent(search.corners))
    kinked = extent >= search.extent
    adopts = sampling & ~goes_on & (kinked | (search.moved & descends))

    # CHECK: nothing may descend
    checks = passes & ~nears | (checking & seen.level & (turn < 2 * m))
    ends = checking & seen.level & ~checks
    lower = checking & seen.lower

    # the next trial
    keeps = ~(begins | grows)
    begun = jnp.where(begins, here.smooth, search.extent)
    near = jnp.where(begins, nears, search.near)
    x = here.at(jnp.where(checks, hull.look(here, turn), hull.step), near)
    samples = begins | goes_on | checks
    x = jnp.where(samples, x, jnp.where(lower, before.trial.x, after.point.x))
    visits = samples | adopts | lower
    shorter = _shortened(before.trial, after.point.x)
    trial = choose(visits, _visit(after.trial, x), after.trial)
    trial = choose(along & ~moved & running, shorter, trial)
    mode = _first_of(
        (begins | goes_on, SAMPLE),
        (checks, CHECK),
        (adopts, ADOPT),
        (steps | lower, ALONG),
        (leaves, OFF),
        otherwise=OVER,
    )
    status = _first_of(
        (full, Status.MAX_STEPS),
        (visits, RUNNING),
        (ends, Status.KINK),
        (search.samples, Status.STALLED),
        otherwise=after.status,
    )
    search = Search(
        mode=mode,
        turn=turn,
        moved=search.moved | arrives,
        near=near,
        extent=jnp.where(nears, ALIKE * extent, begun),
        length=jnp.where(keeps, search.length, hull.length),
        corners=jnp.where(keeps, search.corners, corners),
        weights=jnp.where(keeps, search.weights, hull.weights),
        slope=jnp.where(keeps, search.slope, hull.slope),
    )
    return Turn(search, trial, status, after.finishing & ~visits)


def _first_of(*cases, otherwise):
    """The first number whose condition holds."""
    number = jnp.asarray(otherwise, jnp.int32)
    for condition, value in reversed(cases):
        number = jnp.where(condition, jnp.int32(value), number)
    return number


def _visit(trial, x):
    """A trial of which no model expects anything."""
    zero = jnp.zeros_like(trial.length)
    no = zero != 0
    return dataclasses.replace(
        trial, x=x, framed=no, predicted=zero, slope=zero, length=zero
    )


def _shortened(trial, x):
    """A quarter of a step along the kink; damped steps would leave it."""
    slope, bend = trial.slope / 4, (trial.slope - trial.predicted) / 16
    return dataclasses.replace(
        _visit(trial, x + (trial.x - x) / 4),
        predicted=slope - bend,
        slope=slope,
        length=trial.length / 4,
    )


# At a point


class _Here(NamedTuple):
    """A point, with its columns scaled to one."""

    point: Any
    bounds: Bounds | None
    size: Vector  # 1 / |J_i|; zero for what does not move, or a bound holds
    inverse: Matrix  # of the Hessian, over the others
    limit: Scalar  # of the certificate
    radius: Scalar  # of samples
    smooth: Scalar  # the most that a smooth gradient changes in it

    @classmethod
    def of(cls, bounds, point):
        limit = certificate_limit(point.linearization, point.rounding)
        squared = point.squared_norms
        moves = squared > 0
        if bounds is not None:
            down = point.gradient > 0
            ahead = jnp.where(down, point.x - bounds.lower, bounds.upper - point.x)
            moves = moves & (ahead * jnp.sqrt(squared) > limit)
        size = jnp.where(moves, 1 / jnp.sqrt(jnp.where(moves, squared, 1)), 0)
        unit = unit_diagonal(point.linearization.hessian * outer(size, size))
        ridge = jnp.full_like(size, 8 * len(size) * jnp.finfo(size.dtype).eps)
        lower = lax.linalg.cholesky(add_diagonal(unit, ridge), symmetrize_input=False)
        half = lax.linalg.triangular_solve(
            lower, jnp.diag(size), left_side=True, lower=True
        )
        inverse = matmul(transpose(half), half)
        radius = RADIUS * limit
        return cls(
            *(point, bounds, size, inverse, limit, radius),
            smooth=KINKED * len(size) * radius,
        )

    def extent(self, corners) -> Scalar:
        """How far the corners of a hull lie from the first."""
        across = self.size * (corners - corners[0])
        return jnp.sqrt(jnp.max(jnp.sum(across**2, axis=1)))

    def at(self, down, near) -> Vector:
        """Down from the point, as far as the sampling radius."""
        length = norm(down / jnp.where(self.size > 0, self.size, jnp.inf))
        radius = self.radius * jnp.where(near, NEARER, 1)
        x = self.point.x - radius / jnp.where(length > 0, length, 1) * down
        return x if self.bounds is None else self.bounds.project(x)


class Hull(NamedTuple):
    """The convex hull of gradients, in the metric of the inverse Hessian.

    The Newton step of the least-norm element in this metric stays on the kink.
    """

    weights: Float[Array, " m"]  # of the corners in the least-norm element
    slope: Vector  # that element
    steps: Float[Array, "m n"]  # Newton steps of the corners, upwards
    step: Vector  # that of the least-norm element
    length: Scalar  # of it
    certified: Flag
    extent: Scalar

    @classmethod
    def of(cls, here, corners):
        steps = matmul(corners, here.inverse)
        weights = least_norm(matmul(steps, transpose(corners)))
        both = matmul(weights[None], jnp.concatenate([corners, steps], axis=1))[0]
        slope, step = jnp.split(both, 2)
        return cls(
            *(weights, slope, steps, step),
            length=jnp.sqrt(jnp.maximum(inner(slope, step), 0)),
            certified=jnp.max(here.size * jnp.abs(slope)) <= here.limit,
            extent=here.extent(corners),
        )

    def look(self, here, turn) -> Vector:
        """Where to look for a descent: down a corner, or anywhere."""
        m, n = self.steps.shape
        anywhere = np.random.default_rng(0).normal(size=(2 * m, n))
        anywhere = here.size * jnp.asarray(anywhere, here.size.dtype)[turn]
        used = (turn < m) & (self.weights[turn % m] > 0)
        return jnp.where(used, self.steps[turn % m], anywhere)


class _Seen(NamedTuple):
    """What a sample tells."""

    shift: Vector  # of x
    gradient: Vector  # at the point, of the piece that the sample is on
    change: Scalar  # of the cost
    continuous: Flag  # the slopes that are known explain the change
    level: Flag  # and it is none, or upwards
    lower: Flag  # or downwards

    @classmethod
    def of(cls, here, before, sample):
        shift = before.trial.x - here.point.x
        bend = matvec(sample.hessian, shift)
        gradient = sample.gradient - bend
        slopes = matvec(before.search.corners, shift)
        slope, bend = inner(gradient, shift), 0.5 * inner(bend, shift)
        change = sample.cost - here.point.linearization.cost
        least = jnp.minimum(jnp.min(slopes), slope)
        most = jnp.maximum(jnp.max(slopes), slope) + bend
        lin, eps = here.point.linearization, jnp.finfo(shift.dtype).eps
        rounding = 4 * eps * jnp.sqrt(lin.count) * lin.cost
        rounding += 2 * jnp.sqrt(lin.squared_residual) * here.point.rounding
        rounding += len(shift) * here.radius**2
        continuous = (change >= least - rounding) & (change <= most + rounding)
        continuous = continuous & (jnp.abs(slope) < jnp.inf)
        return cls(
            *(shift, gradient, change, continuous),
            level=continuous & (change >= -rounding),
            lower=continuous & (change < -rounding),
        )


def least_norm(gram: Float[Array, "m m"]) -> Float[Array, " m"]:
    """Weights of the point of least norm in the convex hull of m points.

    By pairwise Frank-Wolfe steps (Lacoste-Julien and Jaggi, NeurIPS 2015): weight moves
    from the worst corner that has any to the best, as far as that pays.

    Args:
        gram: inner products of the points.
    """
    m, eps = len(gram), jnp.finfo(gram.dtype).eps
    closeness = m * eps * jnp.max(jnp.abs(gram))

    def unfinished(carry):
        _, gap, trips = carry
        return (gap > closeness) & (trips < HULL_TRIPS)

    def move(carry):
        weights, _, trips = carry
        images = matvec(gram, weights)
        worst = jnp.argmax(jnp.where(weights > 0, images, -jnp.inf))
        best = jnp.argmin(images)
        gap = images[worst] - images[best]
        curvature = gram[worst, worst] + gram[best, best] - 2 * gram[worst, best]
        step = gap / jnp.where(curvature > 0, curvature, 1)
        step = jnp.where(curvature > 0, jnp.minimum(step, weights[worst]), 0)
        place = jnp.arange(m)
        moved = weights + jnp.where(place == best, step, 0)
        moved = moved - jnp.where(place == worst, step, 0)
        return jnp.maximum(moved, 0), gap, trips + 1

    weights = jnp.where(jnp.arange(m) == 0, 1, 0).astype(gram.dtype)
    return lax.while_loop(unfinished, move, (weights, jnp.inf + gram[0, 0], 0))[0]


def held(point, search: Search) -> Linearization:
    """The linearization at a kink, with the Jacobian along the kink alone.

    Only in directions in which all corners agree does the cost have a curvature; the
    others are held by the kink, and a frame that leaves them out says so.
    """
    scale = jnp.sqrt(jnp.where(point.squared_norms > 0, point.squared_norms, 1))
    across = (search.corners - search.corners[0]) / scale
    rounding = jnp.finfo(scale.dtype).eps ** 0.5
    curved = search.extent / KINKED

    def without(k, onto):
        left = matvec(onto, across[k])
        left = jnp.where(jnp.abs(left) > curved, left, 0)
        length = norm(left)
        unit = left / jnp.where(length > 0, length, 1)
        onto = onto - outer(unit, unit)
        return jnp.where(jnp.abs(onto) > rounding, onto, 0)

    eye = jnp.eye(len(scale), dtype=scale.dtype)
    onto = lax.fori_loop(1, len(across), without, eye)
    frame = onto * scale / scale[:, None]
    return dataclasses.replace(point.linearization, frame=frame)
