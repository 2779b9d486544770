"""What does not change during a fit, and the state in which it begins."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfit._core.bounds import Bounds, start_inside
from jaxfit._core.certificate import INCOMPLETE, RUNNING, Status
from jaxfit._core.kink import Search
from jaxfit._core.options import Limits
from jaxfit._core.rules import OURS, POOR, Rules
from jaxfit._core.state import Point, State, Trial
from jaxfit._linalg.branches import varying_with
from jaxfit._linalg.kernels import Flag, Scalar, Vector, every
from jaxfit._rows.linearization import Kind


class Setting(eqx.Module):
    """What does not change during a fit, besides the residual function."""

    limits: Limits
    bounds: Bounds | None
    x_scale: Vector | None  # None: the inverse of the Jacobian's column norms
    # how far what is no parameter here is rounded moves the residual vector
    rounding: Scalar | None = eqx.field(kw_only=True, default=None)
    kind: Kind = eqx.field(static=True)  # of the cost
    rules: Rules = eqx.field(static=True, default=OURS)
    # some residual may have a kink, where `is_smooth` does not say so: of streams
    is_kinked: Flag | None = eqx.field(kw_only=True, default=None)
    # the residuals can have no kink
    is_smooth: bool = eqx.field(static=True, default=False)
    # where a fit stalls it looks for a kink
    may_search: bool = eqx.field(static=True, default=True)
    # local parameters are swept out of every linearization
    is_swept: bool = eqx.field(static=True, default=False)
    # what is decided in a trip is one function, on CPUs, where the whole fit is none
    in_one_function: bool = eqx.field(static=True, default=False)
    # what is seldom needed is left out, and a fit that needs it ends: see `seldom.py`
    is_lean: bool = eqx.field(static=True, default=False)

    @property
    def poor(self) -> Scalar | float:
        """The ratio below which a step at the edge makes the region smaller."""
        if self.is_kinked is None:
            return self.rules.poor if self.is_smooth else POOR
        return jnp.where(self.is_kinked, POOR, self.rules.poor)

    @property
    def can_have_kinks(self) -> bool:
        """Whether a fit that stalls may have stalled on a kink."""
        return self.rules.certifies and self.may_search and not self.is_smooth

    @property
    def looks_for_kinks(self) -> bool:
        """Whether it looks for one."""
        return self.can_have_kinks and not self.is_lean

    def scale(self, largest_norms: Vector) -> Vector:
        """Sizes of the parameters: given, or the inverse of the largest column norms.

        Args:
            largest_norms: of the columns so far, squared.
        """
        if self.x_scale is not None:
            return self.x_scale
        return 1 / jnp.sqrt(jnp.where(largest_norms > 0, largest_norms, 1))


def is_incomplete(setting: Setting, status: Int[Array, "*lanes"]) -> Flag:
    """Whether a lean fit that ended so needs what was left out."""
    incomplete = status == INCOMPLETE
    if setting.can_have_kinks:
        incomplete = incomplete | (status == jnp.int32(Status.STALLED))
    return incomplete


def initial_state(setting: Setting, x0: Vector) -> State:
    """The state in which the start is the first trial point."""
    zero = jnp.zeros_like(x0[0])
    count = zero.astype(jnp.int32)
    bounds, status, start = setting.bounds, count + RUNNING, x0
    if bounds is not None:
        x0 = jnp.where(bounds.free, x0, bounds.lower)
        is_valid = bounds.contains(x0) & every(bounds.lower <= bounds.upper)
        status = jnp.where(is_valid, status, jnp.int32(Status.INVALID_BOUNDS))
        start = start_inside(x0, bounds)
    state = State(
        trial=Trial.of_nothing(start),
        radius=zero + 1,
        alpha=zero,
        nfev=count,
        finishing=zero != 0,
        point=Point.not_evaluated(x0, setting.kind, setting.is_swept),
        steps=count,
        search=Search.off(x0) if setting.looks_for_kinks else None,
        status=status,
        start_cost=zero + jnp.inf,
    )
    return varying_with(state, x0)
