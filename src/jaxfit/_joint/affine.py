"""Whether residuals are affine in some of their arguments, seen from their trace."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxfit._joint.block import Own
from jaxfit._programs.one_function import holds
from jaxfit._programs.smooth import CALLS, inner_jaxprs, used_places
from jaxfit._rows.residuals import Residuals


def check_affine(residuals: Residuals, u: Own, rows: list) -> None:
    """Refuse residuals that are not affine in u, as far as can be seen."""
    if not is_affine(lambda u: residuals.value(u, rows), u):
        raise ValueError(
            "linear=True, but fn(x, u, data) is not seen to be affine in u: its "
            "derivative by u depends on u. Let u enter as a sum of terms, each one "
            "number of u times what depends on x and data alone, or leave out "
            "linear=True."
        )


def is_affine(function: Callable[[Array], PyTree], u: Own) -> bool:
    """Whether the derivative of a function is seen not to depend on where it is.

    And whether it has one: what is rounded or compared has none, and yet depends on u.
    """

    def slope(u: Array, direction: Array) -> PyTree:
        return jax.jvp(function, (u,), (direction,))[1]

    if 0 in used_inputs(slope, u, u):
        return False
    jaxpr = jax.make_jaxpr(function)(u).jaxpr
    return not _has_steps(jaxpr, [True] * len(jaxpr.invars))


# What has a derivative of zero and depends on its argument all the same.
STEPS = frozenset(
    "argmax argmin ceil eq floor ge gt is_finite le lt ne round sign "
    "stop_gradient".split()
)


def _has_steps(jaxpr: Any, depends: Sequence[bool]) -> bool:
    """Whether something that depends on some arguments is rounded or compared."""
    moving = {var for var, d in zip(jaxpr.invars, depends, strict=True) if d}
    for equation in jaxpr.eqns:
        flags = [not hasattr(v, "val") and v in moving for v in equation.invars]
        if any(flags) and _is_step(equation, flags):
            return True
        moving |= set(equation.outvars) if any(flags) else set()
    return False


def _is_step(equation: Any, flags: list[bool]) -> bool:
    name, inner = equation.primitive.name, list(inner_jaxprs(equation))
    if name == "convert_element_type":
        return not jnp.issubdtype(equation.params["new_dtype"], jnp.inexact)
    if name in CALLS:
        return _has_steps(inner[0], flags)
    return name in STEPS or any(holds(one, step) for one in inner for step in STEPS)


def used_inputs(function: Callable, *arguments: PyTree) -> set[int]:
    """The places, among all leaves of its arguments, on which a function depends."""
    return used_places(jax.make_jaxpr(function)(*arguments).jaxpr)
