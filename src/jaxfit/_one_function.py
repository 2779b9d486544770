"""A computation as one function of the machine, on CPUs.

XLA runs a program on a CPU as a list of small kernels, each compiled and started by
itself. A call that carries a mark of its own is emitted as one function instead, loops
and branches included: a fit then starts and runs in a fraction of the time. The mark is
no documented interface, and must never hurt: it is set only in releases of jaxlib in
which it was tried, for primitives that were tried, and in programs on one device, since
what a compiler puts in for several cannot stand in one function. Without it a program
is the same, only slower.
"""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import PyTree

from jaxfit._smooth import inner_jaxprs

VARIABLE = "JAXFIT_ONE_FUNCTION"

# Releases of jaxlib in which `tests/test_one_function.py` has tried every primitive.
RELEASES = {(0, 10), (0, 12)}

# XLA hands larger reductions to a library, which cannot be called from the function.
LARGEST_REDUCTION = 4096

REDUCTIONS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod "
    "reduce_sum reduce_window_sum reduce_xor".split()
)

# Primitives of which an example was compiled so and gave the right numbers.
PRIMITIVES = REDUCTIONS | frozenset(
    "SearchSorted "
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e "
    "bitcast_convert_type broadcast_in_dim cbrt ceil clamp complex concatenate "
    "cond conj convert_element_type copy cos cosh cumlogsumexp cummax cummin "
    "cumprod cumsum custom_jvp_call digamma div dynamic_slice "
    "dynamic_update_slice eq erf erf_inv erfc exp exp2 expm1 floor gather ge gt "
    "igamma igammac imag integer_pow iota is_finite jit le lgamma log log1p "
    "logistic lt lt_to max min mul ne neg nextafter not optimization_barrier or "
    "pad polygamma polynomial pow random_bits random_seed real reduce_precision "
    "regularized_incomplete_beta rem remat2 reshape rev round "
    "rsqrt scan select_n shift_left shift_right_arithmetic shift_right_logical "
    "sign sin sinh slice split sqrt square squeeze stack stop_gradient sub tan "
    "tanh tile transpose unstack while xor zeta".split()
)

_marked: Any = {"xla_cpu_small_call": "true", "inlineable": "false"}
_unmarked: Any = {"xla_cpu_small_call": "false", "inlineable": "true"}

_ours: contextvars.ContextVar[bool] = contextvars.ContextVar("ours", default=False)
_was_used: contextvars.ContextVar[list] = contextvars.ContextVar("was_used")


@contextlib.contextmanager
def program_of_ours() -> Iterator[list]:
    """While a program is traced that we compile ourselves, for one device.

    Yields:
        a list that is not empty once it was.
    """
    tokens = _ours.set(True), _was_used.set([])
    try:
        yield _was_used.get()
    finally:
        _ours.reset(tokens[0])
        _was_used.reset(tokens[1])


def is_possible(choice: bool | None) -> bool:
    """Whether what is traced now may be one function.

    Args:
        choice: of `Options`; None where that can do no harm.
    """
    if choice is False or os.environ.get(VARIABLE, "") == "0":
        return False
    if choice or _ours.get():
        return bool(choice) or _is_known_release()
    return _is_known_release() and _is_of_one_device()


def _is_known_release() -> bool:
    release = jaxlib.version.__version_info__
    return tuple(release[:2]) in RELEASES


def _is_of_one_device() -> bool:
    """Whether a user's program cannot be for several devices together."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names:
        return set(mesh.manual_axes) == set(mesh.axis_names)
    return jax.device_count() == 1 and jax.process_count() == 1


def can_be_one_function(jaxpr: Any, times: int) -> bool:
    """Whether a user's function holds but primitives that were tried.

    Args:
        jaxpr: of the function.
        times: by how much its derivatives are larger.
    """
    for equation in jaxpr.eqns:
        name = _name(equation)
        if name not in PRIMITIVES:
            return False
        if name in REDUCTIONS:
            size = max(atom.aval.size for atom in equation.invars)
            if size * times >= LARGEST_REDUCTION:
                return False
        for inner in inner_jaxprs(equation):
            if not can_be_one_function(inner, times):
                return False
    return True


def holds(jaxpr: Any, name: str) -> bool:
    """Whether a primitive stands in a function, or inside of others in it."""
    return any(
        _name(equation) == name
        or any(holds(inner, name) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def _name(equation) -> str:
    """Of a primitive, or of what newer releases wrap into one."""
    wrapped = equation.params.get("_prim")
    return equation.primitive.name if wrapped is None else type(wrapped).__name__


def one_function(run: Callable[[PyTree], PyTree], arrays: PyTree) -> PyTree:
    """`run(arrays)`, as one function where it is compiled for a CPU.

    Batched by `jax.vmap`, it is what `run` is. What it closes over becomes arguments.
    """
    closed, shape = jax.make_jaxpr(run, return_shape=True)(arrays)
    operands, number = [*closed.consts, *jax.tree.leaves(arrays)], len(closed.consts)
    places = [i for i, x in enumerate(operands) if _is_input(x, i >= number)]
    rest = {i: x for i, x in enumerate(operands) if i not in places}
    empty = {i: jnp.zeros(x.shape, x.dtype) for i, x in rest.items() if x.size == 0}

    def plain(inputs):
        values = rest | empty | dict(zip(places, inputs, strict=True))
        values = [values[i] for i in range(len(operands))]
        return jax.core.eval_jaxpr(closed.jaxpr, values[:number], *values[number:])

    @jax.jit
    def inside(inputs):
        with set_xla_metadata(**_unmarked):  # for all that stands in it
            return plain(inputs), _anchor(inputs)

    def marked(inputs):
        # each by itself: without, jaxlib 0.10 aborts for some fits inside of branches
        inputs = [lax.optimization_barrier(x) for x in inputs]
        with set_xla_metadata(**_marked):
            return inside(inputs)[0]

    @custom_vmap
    def either(inputs):
        return lax.platform_dependent(inputs, cpu=marked, default=plain)

    @either.def_vmap
    def batched(size, in_batched, inputs):
        axes = [0 if is_batched else None for is_batched in in_batched[0]]
        out = jax.vmap(plain, in_axes=(axes,), axis_size=size)(inputs)
        return out, [True] * len(out)

    if (used := _was_used.get(None)) is not None:
        used.append(True)
    out = either([operands[i] for i in places])
    return jax.tree.unflatten(jax.tree.structure(shape), out)


def _is_input(operand, is_argument: bool) -> bool:
    """Other constants are part of the program."""
    return operand.size > 0 and (is_argument or isinstance(operand, Tracer))


def _anchor(inputs):
    """Something of each input: the compiler aborts for an input that is not used."""
    return [jnp.ravel(x)[:1] for x in inputs]
