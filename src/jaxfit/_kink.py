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

from jaxfit._bounds import Bounds, coleman_li
from jaxfit._linearize import Columns, Linearization
from jaxfit._small import (
    Flag,
    Matrix,
    Scalar,
    Vector,
    choose,
    diagonal,
    identity,
    inner,
    matmul,
    matvec,
    norm,
    outer,
    transpose,
    varying_with,
    where_needed_one_by_one,
)
from jaxfit._solution import RUNNING, Status, certificate_limit

OFF, SAMPLE, ADOPT, ALONG, CHECK, OVER = range(6)  # modes of a search

MOST = 8  # the hull has room for the gradients of so many kinks at one point

# Samples are so far away, in units of the certificate's limit, columns scaled to one:
# so near that a smooth gradient is the same, so far that the cost shows its slope.
RADIUS = 0.05
NEARER = 1 / 32  # of it, the second time

RESOLVED = 16  # and not nearer than so many units of rounding of x

PROGRESS = 0.99  # of the least norm, if a sample was worth while
DESCENT = 0.1  # of what the least-norm element promises, if the cost falls
KINKED = 4  # times what the radius changes in a smooth gradient: a kink
ALIKE = 0.8  # of the size of the hull further out: that of the same kink
HULL_TRIPS = 1000


class Search(eqx.Module):
    """What a fit knows of the kink on which it has stalled."""

    mode: Int[Array, "*lanes"]
    turn: Int[Array, "*lanes"]  # samples in this mode
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

    def adopted(self, linearization: Linearization, point) -> Linearization:
        """The linearization at the trial point, that along the kink where it adopts."""
        numbers = linearization.normal, linearization.frame
        numbers = varying_with(numbers, point.x)
        normal, frame = where_needed_one_by_one(
            self.adopts, _along_kink, lambda numbers, *_: numbers, numbers, self, point
        )
        return dataclasses.replace(linearization, normal=normal, frame=frame)

    def columns(self, columns: Columns, sample: Linearization) -> Columns:
        """Columns at the trial point, of whole length where it adopts a slope."""
        whole = diagonal(sample.normal)[:-1]
        lengths = jnp.where(self.adopts, whole, columns.squared_norms)
        moves = columns.moves | (self.adopts & (whole > 0))
        return columns._replace(squared_norms=lengths, moves=moves)

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
    adopts = sampling & ~goes_on & (kinked | descends)

    # CHECK: nothing may descend
    checks = passes & ~nears | (checking & seen.level & (turn < 2 * m))
    ends = checking & seen.level & ~checks
    lower = checking & seen.lower

    # the next trial
    keeps = ~(begins | grows)
    begun = jnp.where(begins, here.smooth, search.extent)
    near = jnp.where(begins, nears, search.near)
    x = here.at(jnp.where(checks, hull.look(here, turn), hull.slope), near)
    samples = begins | goes_on | checks
    x = jnp.where(samples, x, jnp.where(lower, before.trial.x, after.point.x))
    visits = samples | adopts | lower
    shorter = _shortened(before.trial, after.point.x)
    trial = choose(visits, _visit(after.trial, x), after.trial)
    trial = choose(along & ~moved & running, shorter, trial)
    trial = dataclasses.replace(trial, framed=trial.framed & ~steps)
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
    size: Vector  # 1 / |J_i|, less near the bound ahead: as in `hat_model`
    limit: Scalar  # of the certificate
    radius: Scalar  # of samples
    smooth: Scalar  # the most that a smooth gradient changes in it

    @classmethod
    def of(cls, bounds, point):
        limit = certificate_limit(point.linearization, point.rounding)
        squared = point.largest_norms
        size = jnp.sqrt(jnp.where(squared > 0, 1 / squared, 0))
        if bounds is not None:
            ahead, _ = coleman_li(point.x, point.gradient, bounds)
            size = jnp.sqrt(size * jnp.minimum(ahead, size))
        radius = RADIUS * limit
        return cls(point, bounds, size, limit, radius, KINKED * len(size) * radius)

    def extent(self, corners) -> Scalar:
        """How far the corners of a hull lie from the first."""
        across = self.size * (corners - corners[0])
        return jnp.sqrt(jnp.max(jnp.sum(across**2, axis=1)))

    def at(self, down, near) -> Vector:
        """Down a gradient from the point, as far as the sampling radius."""
        down = self.size * down
        length = norm(down)
        radius = jnp.where(near, NEARER * self.radius, self.radius)
        radius = jnp.maximum(radius, RESOLVED * self.point.rounding)
        step = radius / jnp.where(length > 0, length, 1) * self.size * down
        x = self.point.x - step
        return x if self.bounds is None else self.bounds.project(x)


class Hull(NamedTuple):
    """The convex hull of gradients, columns scaled to one."""

    corners: Float[Array, "m n"]
    weights: Float[Array, " m"]  # of the corners in the least-norm element
    slope: Vector  # that element
    length: Scalar  # of it
    certified: Flag
    extent: Scalar

    @classmethod
    def of(cls, here, corners):
        scaled = here.size * corners
        weights = least_norm(matmul(scaled, transpose(scaled)))
        slope = matvec(transpose(corners), weights)
        terms = here.size * slope
        return cls(
            *(corners, weights, slope),
            length=norm(terms),
            certified=jnp.max(jnp.abs(terms)) <= here.limit,
            extent=here.extent(corners),
        )

    def look(self, here, turn) -> Vector:
        """Where to look for a descent: down a corner, or anywhere."""
        m, n = self.corners.shape
        anywhere = np.random.default_rng(0).normal(size=(2 * m, n))
        anywhere = jnp.asarray(anywhere, here.size.dtype)[turn]
        anywhere = anywhere / jnp.where(here.size > 0, here.size, 1)
        used = (turn < m) & (self.weights[turn % m] > 0)
        return jnp.where(used, self.corners[turn % m], anywhere)


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
        slope, bend = inner(gradient, shift), inner(bend, shift)
        change = sample.cost - here.point.linearization.cost
        least = jnp.minimum(jnp.min(slopes), slope) - bend
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
    start = weights, jnp.asarray(jnp.inf, gram.dtype), jnp.asarray(0)
    return lax.while_loop(unfinished, move, varying_with(start, gram))[0]


def _along_kink(numbers, search, point) -> tuple[Matrix, Matrix]:
    """Of a linearization: the slope for a gradient, and the Jacobian along the kink.

    Only in directions in which all corners agree has the cost a curvature, and only
    there may a step go; a frame that leaves out the others, which the kink holds, says
    so to all that reads it.
    """
    norms, here = point.largest_norms, _Here.of(None, point)
    scale = jnp.sqrt(jnp.where(norms > 0, norms, 1))
    across = (search.corners - search.corners[0]) / scale
    rounding = jnp.finfo(scale.dtype).eps ** 0.5

    def without(k, onto):
        left = matvec(onto, across[k])
        left = jnp.where(jnp.abs(left) > here.smooth / KINKED, left, 0)
        length = norm(left)
        unit = left / jnp.where(length > 0, length, 1)
        onto = onto - outer(unit, unit)
        return jnp.where(jnp.abs(onto) > rounding, onto, 0)

    eye = varying_with(identity(scale), across)
    onto = lax.fori_loop(1, len(across), without, eye)
    frame = onto * scale / scale[:, None]
    normal, _ = numbers
    gram = matmul(transpose(frame), matmul(normal[:-1, :-1], frame))
    gram = gram + outer(scale, scale) * (eye - onto)  # which the frame leaves out
    normal = normal.at[:-1, :-1].set(gram)
    return normal.at[:-1, -1].set(search.slope).at[-1, :-1].set(search.slope), frame
