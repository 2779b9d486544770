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
from jaxtyping import Array, Bool, Float, Int

from jaxfit._core.bounds import Bounds
from jaxfit._core.certificate import RUNNING, Status
from jaxfit._core.hull import Vicinity, along_kink, first_corner, least_norm
from jaxfit._linalg.branches import branch, choose, for_each, varying_with
from jaxfit._linalg.kernels import (
    Flag,
    Scalar,
    Vector,
    diagonal,
    first_of,
    inner,
    is_lanes,
    matmul,
    matvec,
    norm,
    transpose,
)
from jaxfit._rows.linearization import Columns, Linearization, columns_of

OFF, SAMPLE, ADOPT, ALONG, CHECK, OVER = range(6)  # modes of a search

MOST = 8  # the hull has room for the gradients of so many kinks at one point

PROGRESS = 0.99  # of the least norm, if a sample was worth while
DESCENT = 0.1  # of what the least-norm element promises, if the cost falls
ALIKE = 0.8  # of the size of the hull further out: that of the same kink


class Search(eqx.Module):
    """What a fit knows of the kink on which it has stalled."""

    mode: Int[Array, "*lanes"]
    turn: Int[Array, "*lanes"]  # samples in this mode
    near: Flag  # whether samples are taken near by
    extent: Scalar  # the least size of a hull about a kink
    corners: Float[Array, "m n *lanes"]  # gradients, the first that of the point
    weights: Float[Array, "m *lanes"]  # of the corners in the least-norm element

    @classmethod
    def off(cls, x: Vector) -> "Search":
        """No search."""
        zeros = jnp.zeros_like(x)
        zero = zeros[0].astype(jnp.int32)
        corners = jnp.stack([zeros] * (min(len(x), MOST) + 2))
        return cls(
            mode=zero + OFF,
            turn=zero,
            near=zero != 0,
            extent=zeros[0],
            corners=corners,
            weights=corners[:, 0],
        )

    @property
    def slope(self) -> Vector:
        """The least-norm element of the hull of the corners."""
        return matvec(transpose(self.corners), self.weights)

    @property
    def samples(self) -> Flag:
        """Whether the trial is a sample, and not a step."""
        return (self.mode == SAMPLE) | (self.mode == CHECK)

    @property
    def adopts(self) -> Flag:
        """Whether the trial is the point itself, with the slope for its gradient."""
        return self.mode == ADOPT

    def seen(self, sample: Linearization, point: Any) -> tuple[Linearization, Columns]:
        """The linearization at the trial point, that along the kink where it adopts,
        and its columns, which then have their whole length."""
        numbers = varying_with((sample.normal, sample.frame), point.x)
        normal, frame = branch(
            self.adopts,
            for_each(along_kink, is_lanes(point.x)),
            lambda numbers, *_: numbers,
            numbers,
            self,
            point,
        )
        linearization = dataclasses.replace(sample, normal=normal, frame=frame)
        columns = columns_of(linearization)
        whole = diagonal(sample.normal)[:-1]
        lengths = jnp.where(self.adopts, whole, columns.squared_norms)
        moves = columns.moves | (self.adopts & (whole > 0))
        return linearization, columns._replace(squared_norms=lengths, moves=moves)

    def look(self, vicinity: Vicinity) -> Vector:
        """The direction in which to look for a descent: down a corner, or anywhere."""
        m, n = self.corners.shape
        anywhere = np.random.default_rng(0).normal(size=(2 * m, n))
        anywhere = jnp.asarray(anywhere, vicinity.size.dtype)
        anywhere = anywhere / jnp.where(vicinity.size > 0, vicinity.size, 1)
        used = jnp.where(self.weights[:, None] > 0, self.corners, anywhere[:m])
        directions = jnp.concatenate([used, anywhere[m:]])
        return lax.dynamic_index_in_dim(directions, self.turn, keepdims=False)

    def is_wanted(self, status: Int[Array, "*lanes"], finishing: Flag) -> Flag:
        """Whether `searched` is to decide what follows a trip with this end."""
        stalled = (status == jnp.int32(Status.STALLED)) & ~finishing
        goes_on = (self.mode != OVER) & (status != jnp.int32(Status.MAX_STEPS))
        return jnp.where(self.mode == OFF, stalled, goes_on)


class Turn(NamedTuple):
    """What follows a trip of a search."""

    search: Search
    trial: Any
    status: Int[Array, "*lanes"]
    finishing: Flag

    @classmethod
    def of(cls, state: Any) -> "Turn":
        """What a state says of it."""
        return cls(state.search, state.trial, state.status, state.finishing)


def searched(
    bounds: Bounds | None, before: Any, after: Any, sample: Linearization
) -> Turn:
    """What follows a trip of a search, or a fit that has stalled.

    Args:
        bounds: of the fit.
        before, after: its states about the trip; `after` knows of no search.
        sample: the linearization at the trial point.
    """
    vicinity = Vicinity.of(bounds, after.point)
    return branch(
        before.search.samples, _sampled, _stepped, vicinity, before, after, sample
    )


def _stepped(
    vicinity: Vicinity, before: Any, after: Any, sample: Linearization
) -> Turn:
    """It has stalled, or adopted the slope of a hull, or made a step with it.

    A hull is begun where it stalls, after a step, and, where the point is certified, a
    second time near by. What is certified there too is checked.
    """
    search, running = before.search, after.status == RUNNING
    won, moved = ~running & (after.status > 0), after.steps > before.steps
    off, along = search.mode == OFF, search.mode == ALONG
    leaves = along & won & moved
    passes = won & ~off & ~leaves
    nears = passes & ~search.near
    begins = off | (along & running & moved) | nears
    mode = first_of(
        (begins, SAMPLE),
        (passes, CHECK),
        (running, ALONG),
        (leaves, OFF),
        otherwise=OVER,
    )
    gradient = jnp.where(nears, search.corners[0], after.point.gradient)
    extent = jnp.where(nears, ALIKE * vicinity.extent(search.corners), vicinity.smooth)
    fresh = Search(
        mode=mode,
        turn=jnp.zeros_like(search.turn),
        near=jnp.where(begins, nears, search.near),
        extent=jnp.where(begins, extent, search.extent),
        corners=jnp.where(begins, gradient, search.corners),
        weights=jnp.where(begins, first_corner(search.weights), search.weights),
    )
    samples = (mode == SAMPLE) | (mode == CHECK)
    trial = dataclasses.replace(
        after.trial, framed=after.trial.framed & (mode != ALONG)
    )
    shorter = _shortened(before.trial, after.point.x)
    trial = choose(along & (mode == ALONG), shorter, trial)
    sampled = _visit(trial, vicinity.at(fresh.corners[0], fresh.near))
    return Turn(
        search=fresh,
        trial=choose(samples, sampled, trial),
        status=jnp.where(samples, jnp.int32(RUNNING), after.status),
        finishing=after.finishing & ~samples,
    )


def _sampled(
    vicinity: Vicinity, before: Any, after: Any, sample: Linearization
) -> Turn:
    """A sample makes the hull larger, or completes it, or is a check passed."""
    search, seen = before.search, _Seen.of(vicinity, before, sample)
    m, checking = len(search.weights), search.mode == CHECK

    # one more corner, unless the hull is complete or there is no kink
    spare = jnp.where(first_corner(search.weights) > 0, jnp.inf, search.weights)
    spare = _first_true(spare == jnp.min(spare))
    corners = jnp.where(spare[:, None], seen.gradient, search.corners)
    scaled = vicinity.size * corners
    weights = least_norm(matmul(scaled, transpose(scaled)))
    terms = matvec(transpose(scaled), weights)
    sampling = ~checking & seen.continuous
    descends = seen.change <= DESCENT * inner(search.slope, seen.shift)
    shorter = norm(terms) < PROGRESS * norm(vicinity.size * search.slope)
    grows = sampling & ~descends & shorter
    turn = jnp.where(grows | checking, search.turn + 1, 0)
    more = turn < 2 * m
    corners, weights = choose(
        grows, (corners, weights), (search.corners, search.weights)
    )
    kinked = vicinity.extent(corners) >= search.extent

    complete = jnp.max(jnp.abs(terms)) <= vicinity.limit
    mode = first_of(
        (grows & ~complete & more, SAMPLE),
        (sampling & (kinked | descends), ADOPT),
        (checking & seen.level & more, CHECK),
        (checking & seen.lower, ALONG),
        otherwise=OVER,
    )
    fresh = dataclasses.replace(
        search, mode=mode, turn=turn, corners=corners, weights=weights
    )
    down = jnp.where(checking, fresh.look(vicinity), fresh.slope)
    x = jnp.where(mode == ADOPT, after.point.x, vicinity.at(down, search.near))
    x = jnp.where(mode == ALONG, before.trial.x, x)
    passed = jnp.where(checking & seen.level, Status.KINK, Status.STALLED)
    goes_on = mode != OVER
    return Turn(
        search=fresh,
        trial=choose(goes_on, _visit(after.trial, x), after.trial),
        status=jnp.where(goes_on, RUNNING, passed).astype(jnp.int32),
        finishing=after.finishing & ~goes_on,
    )


def _first_true(flags: Bool[Array, " m"]) -> Bool[Array, " m"]:
    """The first flag that is true, alone."""
    return flags & (jnp.cumsum(flags) == 1)


def _visit(trial: Any, x: Vector) -> Any:
    """A trial of which no model expects anything."""
    zero = jnp.zeros_like(trial.length)
    no = zero != 0
    return dataclasses.replace(
        trial, x=x, framed=no, predicted=zero, slope=zero, length=zero
    )


def _shortened(trial: Any, x: Vector) -> Any:
    """A quarter of a step along the kink; damped steps would leave it."""
    slope, bend = trial.slope / 4, (trial.slope - trial.predicted) / 16
    return dataclasses.replace(
        _visit(trial, x + (trial.x - x) / 4),
        predicted=slope - bend,
        slope=slope,
        length=trial.length / 4,
    )


# At a point


class _Seen(NamedTuple):
    """What a sample tells."""

    shift: Vector  # of x
    gradient: Vector  # at the point, of the piece that the sample is on
    change: Scalar  # of the cost
    continuous: Flag  # the slopes that are known explain the change
    level: Flag  # and it is none, or upwards
    lower: Flag  # or downwards

    @classmethod
    def of(cls, vicinity: Vicinity, before: Any, sample: Linearization) -> "_Seen":
        shift = before.trial.x - vicinity.point.x
        bend = matvec(sample.hessian, shift)
        gradient = sample.gradient - bend
        slopes = matvec(before.search.corners, shift)
        slope, bend = inner(gradient, shift), inner(bend, shift)
        change = sample.cost - vicinity.point.linearization.cost
        least = jnp.minimum(jnp.min(slopes), slope) - bend
        most = jnp.maximum(jnp.max(slopes), slope) + bend
        lin, eps = vicinity.point.linearization, jnp.finfo(shift.dtype).eps
        rounding = 4 * eps * jnp.sqrt(lin.count) * lin.cost_scale
        rounding += 2 * jnp.sqrt(lin.squared_residual) * vicinity.point.rounding
        rounding += len(shift) * vicinity.radius**2
        continuous = (change >= least - rounding) & (change <= most + rounding)
        continuous = continuous & (jnp.abs(slope) < jnp.inf)
        return cls(
            shift=shift,
            gradient=gradient,
            change=change,
            continuous=continuous,
            level=continuous & (change >= -rounding),
            lower=continuous & (change < -rounding),
        )
