"""Whether residuals are affine in some of their arguments, seen from their trace."""

from collections.abc import Callable

import jax
from jax.interpreters import partial_eval
from jaxtyping import Array, PyTree

from jaxfit._linalg.kernels import Vector
from jaxfit._rows.residuals import Residuals


def check_affine(residuals: Residuals, u: Vector, rows: list) -> None:
    """Refuse residuals that are not affine in u, as far as can be seen."""
    if not is_affine(lambda u: residuals.value(u, rows), u):
        raise ValueError(
            "linear=True, but fn(x, u, data) is not seen to be affine in u: its "
            "derivative by u depends on u. Let u enter as a sum of terms, each one "
            "number of u times what depends on x and data alone, or leave out "
            "linear=True."
        )


def is_affine(function: Callable[[Array], PyTree], u: Vector) -> bool:
    """Whether the derivative of a function is seen not to depend on its argument."""

    def slope(u: Array, direction: Array) -> PyTree:
        return jax.jvp(function, (u,), (direction,))[1]

    return not any(0 in used for used in inputs_used(slope, u, u))


def inputs_used(function: Callable[..., PyTree], *arguments: Array) -> list[set[int]]:
    """The places of the arguments on which each result is seen to depend."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr

    def used_by(result: int) -> set[int]:
        wanted = [place == result for place in range(len(jaxpr.outvars))]
        _, used = partial_eval.dce_jaxpr(jaxpr, wanted)
        return {place for place, is_used in enumerate(used) if is_used}

    return [used_by(result) for result in range(len(jaxpr.outvars))]
