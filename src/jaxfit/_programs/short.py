"""Short arrays, as a compiler for CPUs makes vector operations of them.

A loop over a few dozen elements is written out in full before anybody looks for vectors
in it, and an exponential function then costs four times as much. A column of such an
array is a loop in a loop, which is left as it is until vectors were found.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

# Elementwise primitives that cost much more than their place in memory.
COSTLY = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp "
    "exp2 expm1 lgamma log log1p logistic pow sin sinh tan tanh".split()
)

SHORTEST, LONGEST = 8, 1024  # of arrays that are made columns


def in_columns(function: Callable, *arguments: PyTree) -> PyTree:
    """`function(*arguments)`, in which what is costly is done to columns."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    out = _evaluated(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shape), out)


def _evaluated(jaxpr: Any, constants: list, arguments: list) -> list:
    values = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True)
    )

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = list(map(read, equation.invars))
        with equation.ctx.manager:
            results = _done(equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _done(equation: Any, operands: list) -> list:
    """The results of one step of a function."""
    primitive, parameters = equation.primitive, equation.params
    if primitive.name in ("jit", "pjit"):
        inner = parameters["jaxpr"]
        return _evaluated(inner.jaxpr, inner.consts, operands)
    parameters = primitive.get_bind_params(parameters)
    if _is_short(equation, operands):
        shape = equation.outvars[0].aval.shape
        columns = [_apart(jnp.reshape(operand, (-1, 1))) for operand in operands]
        column = _apart(primitive.bind(*columns, **parameters))
        return [jnp.reshape(column, shape)]
    results = primitive.bind(*operands, **parameters)
    return results if primitive.multiple_results else [results]


def _is_short(equation: Any, operands: list) -> bool:
    out = equation.outvars[0].aval
    return (
        equation.primitive.name in COSTLY
        and SHORTEST <= out.size < LONGEST
        and all(jnp.shape(operand) == out.shape for operand in operands)
    )


def _apart(column: Array) -> Array:
    """Not drawn into what comes before or after."""
    return lax.optimization_barrier(column)
