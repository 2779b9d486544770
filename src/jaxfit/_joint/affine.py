"""Whether residuals are affine in some of their arguments, seen from their trace."""

from collections.abc import Callable

import jax
from jax.interpreters import partial_eval
from jaxtyping import Array, PyTree

from jaxfit._joint.block import Own
from jaxfit._rows.residuals import Residuals


def check_affine(residuals: Residuals, u: Own, rows: list) -> None:
    """Refuse residuals that are not affine in u, as far as can be seen."""
    if not is_affine(residuals, u, rows):
        raise ValueError(
            "linear=True, but fn(x, u, data) is not seen to be affine in u: its "
            "derivative by u depends on u. Let u enter as a sum of terms, each one "
            "number of u times what depends on x and data alone, or leave out "
            "linear=True."
        )


def is_affine(residuals: Residuals, u: Own, rows: list) -> bool:
    """Whether the derivative of the residuals by u does not depend on u."""

    def slope(u: Array, direction: Array, rows: PyTree) -> Array:
        return jax.jvp(lambda u: residuals.value(u, rows), (u,), (direction,))[1]

    return 0 not in used_inputs(slope, u, u, rows)


def used_inputs(function: Callable, *arguments: PyTree) -> set[int]:
    """The places, among all leaves of its arguments, on which a function depends."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return {place for place, is_used in enumerate(used) if is_used}
