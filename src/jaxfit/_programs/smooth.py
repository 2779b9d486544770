"""Whether a function can have a kink, seen from what it is made of.

Sums, products and analytic functions of the parameters have none, whatever is done to
the data: a fit of them needs no search for a kink, and its program has none. (A kink
can hide at a pole, as that of x atan(1/x): such a fit is said to have stalled.)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.interpreters import partial_eval

# Without a kink in any of their arguments. Not these: roots, powers of a parameter, and
# what compares or rounds parameters.
SMOOTH = frozenset(
    "add add_any asinh atan bessel_i0e bessel_i1e broadcast_in_dim complex concatenate "
    "conj copy cos cosh cumsum digamma div dot_general erf erfc exp exp2 expm1 imag "
    "integer_pow lgamma log log1p logistic mul neg optimization_barrier pad polynomial "
    "real reduce_sum reduce_window_sum reshape rev sin sinh slice split square squeeze "
    "stack stop_gradient sub tan tanh tile transpose unstack".split()
)

# Without one in arguments but these, by their places.
SMOOTH_IN_OTHERS = {
    "dynamic_slice": {0},
    "gather": {0},
    "pow": {1},
    "select_n": range(1, 10**6),
}

CALLS = frozenset("checkpoint closed_call custom_jvp_call jit pjit remat2".split())


def is_smooth(jaxpr: Any) -> bool:
    """Whether a function of parameters, its first argument, and data has no kink."""
    depends = [True, *[False] * (len(jaxpr.invars) - 1)]
    return _dependent(jaxpr, depends) is not None


def used_places(jaxpr: Any, but: int = 0) -> set[int]:
    """The places of the inputs on which a function's results depend.

    Args:
        but: so many of the first results that are not asked about.
    """
    asked = [place >= but for place in range(len(jaxpr.outvars))]
    _, used = partial_eval.dce_jaxpr(jaxpr, asked)
    return {place for place, is_used in enumerate(used) if is_used}


def _dependent(jaxpr: Any, depends: Sequence[bool]) -> list[bool] | None:
    """Which results depend on the parameters; None if one may have a kink."""
    moving = {var for var, d in zip(jaxpr.invars, depends, strict=True) if d}
    for equation in jaxpr.eqns:
        flags = [_is_in(moving, atom) for atom in equation.invars]
        if not any(flags):
            continue
        out = _results(equation, flags)
        if out is None:
            return None
        pairs = zip(equation.outvars, out, strict=True)
        moving |= {var for var, is_moving in pairs if is_moving}
    return [_is_in(moving, atom) for atom in jaxpr.outvars]


def _results(equation: Any, flags: list[bool]) -> list[bool] | None:
    name, everything = equation.primitive.name, [True] * len(equation.outvars)
    if name in CALLS:
        (inner,) = inner_jaxprs(equation)
        return _dependent(inner, flags)
    if name == "convert_element_type":
        is_number = jnp.issubdtype(equation.params["new_dtype"], jnp.inexact)
        return everything if is_number else None
    places = SMOOTH_IN_OTHERS.get(name, range(len(flags)) if name in SMOOTH else ())
    moving = [place for place, flag in enumerate(flags) if flag]
    return everything if all(place in places for place in moving) else None


def _is_in(moving: set, atom: Any) -> bool:
    return not hasattr(atom, "val") and atom in moving


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """What stands inside of a primitive."""
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner
