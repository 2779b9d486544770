"""One block of rows at a point x, and its local parameters u."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfit._core.bounds import Bounds, active_set
from jaxfit._core.certificate import (
    Status,
    certificate_limit,
    model_rounding,
    projected_gradient,
)
from jaxfit._core.derivative import Outcome
from jaxfit._core.fit import Setup
from jaxfit._joint.sweep import Sweep, newton_step, sweep
from jaxfit._linalg.kernels import Scalar, Vector, identity
from jaxfit._programs.exportable import exportable
from jaxfit._rows.linearization import (
    Frame,
    Linearization,
    Swept,
    columns_of,
    in_words,
    times_believed,
)
from jaxfit._rows.residuals import Predicted
from jaxfit._rows.visit import Rows

Own = Float[Array, " l"]  # one for each local parameter
OwnFlags = Bool[Array, " l"]


class Local(NamedTuple):
    """The local parameters of blocks, which have a leading axis."""

    u: Float[Array, "*blocks l"]
    response: Float[Array, "*blocks l n"]  # du/dx
    status: Int[Array, "*blocks"]  # how the block's own fit ended
    rounding: Float[Array, "*blocks"]  # how far rounding x moves the block's residuals

    @classmethod
    def start(cls, u: Float[Array, "B l"], x: Vector) -> "Local":
        """Before the first trip."""
        zeros = jnp.zeros((*u.shape, len(x)), u.dtype)
        status = jnp.full(len(u), Status.MAX_STEPS, jnp.int32)
        return cls(u, zeros, status, jnp.zeros(len(u), u.dtype))

    def moved(self, step: Vector, bounds: Bounds | None) -> "OwnStarts":
        """Where the local parameters may be after a step of x."""
        u = self.u + jnp.sum(self.response * step, axis=-1)
        if bounds is not None:  # a start outside of them stays there, and is told
            inside = (self.u >= bounds.lower) & (self.u <= bounds.upper)
            u = jnp.where(inside, bounds.project(u), self.u)
        return OwnStarts(expected=u, stood=self.u, rounding=self.rounding)


class OwnStarts(NamedTuple):
    """Where the fits of blocks may begin: along a canyon the first leads astray."""

    expected: Float[Array, "*blocks l"]
    stood: Float[Array, "*blocks l"]  # at the point before
    rounding: Float[Array, "*blocks"]  # of `Local`

    def better(self, setup: Setup) -> Setup:
        """A block's own fit, from the start at which it costs less.

        What cannot be told from rounding there is a matter of x too, as in a fit of all
        parameters at once.
        """
        rows = setup.rows
        costs = rows.cost(self.expected), rows.cost(self.stood)
        start = jnp.where(costs[0] <= costs[1], self.expected, self.stood)
        setting = dataclasses.replace(setup.setting, rounding=self.rounding)
        return setup._replace(start=start, setting=setting)


@exportable
class Factors(NamedTuple):
    """What the errors of the local parameters are made of, all that may move following.

    A Gram matrix in a frame, as in `Linearization`.
    """

    gram: Float[Array, "*blocks l l"]
    frame: Float[Array, "*blocks l l"]  # P⁻¹
    response: Float[Array, "*blocks l n"]  # du/dx
    is_used: Bool[Array, "*blocks"]  # whether any residual counts, and has influence
    active: Int[Array, "*blocks l"]

    @classmethod
    def of(cls, swept: Sweep, u: Own, bounds: Bounds | None) -> "Factors":
        """Those of one block."""
        active = jnp.zeros(u.shape, jnp.int32)
        return cls(
            gram=swept.local.gram,
            frame=swept.local.frame,
            response=swept.response,
            is_used=swept.is_used & (swept.linearization.influence > 0),
            active=active if bounds is None else active_set(u, bounds),
        )


class Block(NamedTuple):
    """The rows of one block at a point x, as a function of either parameters."""

    setup: Setup  # of its own fit; the first of the arrays of its rows is x
    frame: Frame  # the directions of x

    @property
    def x(self) -> Vector:
        """The shared parameters."""
        return self.setup.rows.table.rows[0]

    @property
    def bounds(self) -> Bounds | None:
        """Those of the local parameters."""
        return self.setup.setting.bounds

    def across(self, u: Own) -> Rows:
        """The rows as a function of x."""
        rows = self.setup.rows
        vector, table = rows.residuals.vector, rows.table

        def swapped(x: Vector, pieces: list, *constants: Any) -> Predicted:
            return vector(pieces[0], [x, *pieces[1:]], *constants)

        return rows._replace(
            table=table._replace(rows=[u, *table.rows[1:]]),
            residuals=rows.residuals._replace(vector=swapped),
        )

    def swept(self, u: Own, free: OwnFlags) -> Sweep:
        """The block with these local parameters following x."""
        rows = self.setup.rows
        most = self._believed
        own = rows.evaluated(u, identity(u), most)
        across = self.across(u).evaluated(self.x, self.frame.directions, most)
        return sweep(own, across, free, rows.loss, self.frame)

    @property
    def _believed(self) -> Scalar | None:
        """The same as of the frame, by the rows of this block."""
        most = self.frame.most
        if most is None:
            return None
        number = jnp.asarray(self.setup.rows.residuals.number, most.dtype)
        return times_believed(number, jnp.isinf(most))

    @property
    def free(self) -> OwnFlags:
        """Local parameters that may move."""
        start = self.setup.start
        return jnp.ones(start.shape, bool) if self.bounds is None else self.bounds.free

    def linearization(
        self, swept: Sweep, is_certified: Any = True, is_proper: Any = True
    ) -> Linearization:
        """What the block adds to the sum over all.

        Args:
            is_certified: its local parameters pass the certificate.
            is_proper: it could be fitted at all.
        """
        lin, used = swept.linearization, swept.is_used
        number = jnp.sum(self.free, dtype=jnp.int32)
        zero = jnp.zeros_like(number)
        uncertified = used & ~jnp.asarray(is_certified)
        return dataclasses.replace(
            lin,
            normal=jnp.where(is_proper, lin.normal, jnp.nan),
            swept=Swept(
                held=swept.held,
                parameters=in_words(jnp.where(used, number, zero)),
                uncertified=in_words(jnp.where(uncertified, 1, zero)),
            ),
        )

    def local(self, swept: Sweep, u: Own, status: Int[Array, ""]) -> Local:
        """What is known of the local parameters."""
        held = dataclasses.replace(swept.linearization, normal=swept.held)
        rounding = model_rounding(self.x, jnp.maximum(held.squared_norms, 0))
        return Local(u, swept.response, status, rounding)

    def minimum(self) -> Own:
        """Local parameters that enter linearly, at their minimum.

        In two steps: the first may lose digits as the square of a condition does.
        """
        zeros = jnp.zeros_like(self.setup.start)
        rows, eye = self.setup.rows, identity(zeros)
        first = newton_step(rows.evaluated(zeros, eye))
        return first + newton_step(rows.evaluated(first, eye))


class Fitted(NamedTuple):
    """The report of a block's own fit: the block, swept."""

    frame: Frame

    def __call__(self, setup: Setup, outcome: Outcome) -> tuple[Linearization, Local]:
        block, u, bounds = Block(setup, self.frame), outcome.x, setup.setting.bounds
        free = block.free
        if bounds is not None:
            free = bounds.faces(u, outcome.linearization.gradient).free
        swept = block.swept(u, free)
        # nothing moves a block whose residuals are all beyond the scale of the loss
        is_idle = outcome.linearization.influence == 0
        is_proper = outcome.status != jnp.int32(Status.INVALID_BOUNDS)
        local = block.local(swept, u, outcome.status)
        is_certified = outcome.certified | is_idle | _is_rounding(block, outcome, local)
        return block.linearization(swept, is_certified, is_proper), local


def _is_rounding(block: Block, outcome: Outcome, local: Local) -> Any:
    """Whether the slope along the local parameters is what rounding all of them does.

    On the first trip the block's own fit did not know yet what rounding x does.
    """
    u, own = outcome.x, outcome.linearization
    columns = columns_of(own)
    rounding = model_rounding(u, columns.squared_norms) + local.rounding
    slope = projected_gradient(u, columns, own, block.bounds)
    return slope <= certificate_limit(own, rounding)
