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
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import lax
from jax.core import Tracer, eval_jaxpr
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import PyTree

from jaxfit._programs.arrays import is_extended
from jaxfit._programs.smooth import inner_jaxprs

VARIABLE = "JAXFIT_ONE_FUNCTION"

# Releases of jaxlib in which `tests/test_one_function.py` has tried every primitive.
RELEASES = {(0, 10), (0, 12)}

# Those of them whose compiler takes it inside of what it spreads over devices, too; in
# others it does not come to an end.
IN_PARTS = {(0, 12)}

# XLA hands larger reductions to a library, which cannot be called from the function.
LARGEST_REDUCTION = 4096

REDUCTIONS = frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod "
    "reduce_sum reduce_window_sum reduce_xor".split()
)

# Elements of a matrix whose product with a vector is computed in place.
SMALL_PRODUCT = 13**2

# Primitives of which an example was compiled so and gave the right numbers.
PRIMITIVES = REDUCTIONS | frozenset(
    "SearchSorted abs acos acosh add add_any and asin asinh atan atan2 atanh "
    "bessel_i0e bessel_i1e bitcast_convert_type broadcast_in_dim cbrt ceil clamp "
    "complex concatenate cond conj convert_element_type copy cos cosh "
    "cumlogsumexp cummax cummin cumprod cumsum custom_jvp_call "
    "digamma div dynamic_slice dynamic_update_slice eq erf erf_inv erfc exp exp2 "
    "expm1 floor gather ge gt igamma igammac imag integer_pow iota is_finite jit "
    "le lgamma log log1p logistic lt lt_to max min mul ne neg nextafter not "
    "optimization_barrier or pad platform_index polygamma polynomial pow "
    "random_bits random_seed real reduce_precision regularized_incomplete_beta "
    "rem remat2 reshape rev round rsqrt scan select_n shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh slice split sqrt "
    "square squeeze stack stop_gradient sub tan tanh tile transpose unstack "
    "while xor zeta".split()
)

_marked: Any = {"xla_cpu_small_call": "true", "inlineable": "false"}
_unmarked: Any = {"xla_cpu_small_call": "false", "inlineable": "true"}

_ours: contextvars.ContextVar["Ours | None"] = contextvars.ContextVar(
    "ours", default=None
)


class Ours:
    """A program that we compile ourselves, for one device.

    Args:
        platform: that of the device, if it is known.

    Attributes:
        has_one: whether some part of it is one function.
    """

    def __init__(self, platform: str | None):
        self.platform, self.has_one = platform, False


@contextlib.contextmanager
def program_of_ours(platform: str | None) -> Iterator[Ours]:
    """While a program is traced that we compile ourselves."""
    token = _ours.set(ours := Ours(platform))
    try:
        yield ours
    finally:
        _ours.reset(token)


def on_platform(cpu: Callable, default: Callable, *operands: PyTree) -> PyTree:
    """One of two functions, as the platform turns out to be a CPU or not."""
    ours = _ours.get()
    if ours is not None and ours.platform is not None:
        return (cpu if ours.platform == "cpu" else default)(*operands)
    return lax.platform_dependent(*operands, cpu=cpu, default=default)


def is_possible(choice: bool | None, in_parts: bool = False) -> bool:
    """Whether what is traced now may be one function.

    Args:
        choice: of `Options`; None where that can do no harm.
        in_parts: what is traced is a part that lies on one device in any case.
    """
    if choice is False or os.environ.get(VARIABLE, "") == "0":
        return False
    is_of_one = is_of_one_device()
    if in_parts and not is_of_one:
        return _release() in IN_PARTS
    return bool(choice) or (_release() in RELEASES and is_of_one)


def _release() -> tuple[int, ...]:
    return tuple(jaxlib.version.__version_info__[:2])


def is_of_one_device() -> bool:
    """Whether what is traced cannot be for several devices together."""
    if _ours.get() is not None:
        return True
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
        is_known = name in PRIMITIVES
        if times == 1:  # as it stands: derivatives would make other things of these
            is_known |= name == "custom_vmap_call" or _is_small_product(equation)
        if not is_known:
            return False
        if name in REDUCTIONS:
            size = max(atom.aval.size for atom in equation.invars)
            if size * times >= LARGEST_REDUCTION:
                return False
        for inner in inner_jaxprs(equation):
            if not can_be_one_function(inner, times):
                return False
    return True


def _is_small_product(equation: Any) -> bool:
    """Whether it is a product with a vector, of sizes that need no library."""
    if equation.primitive.name != "dot_general":
        return False
    shapes = [atom.aval.shape for atom in equation.invars]
    return min(map(len, shapes)) == 1 and max(map(math.prod, shapes)) <= SMALL_PRODUCT


def holds(jaxpr: Any, name: str) -> bool:
    """Whether a primitive stands in a function, or inside of others in it."""
    return any(
        _name(equation) == name
        or any(holds(inner, name) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def named_axes(jaxpr: Any) -> set[str]:
    """The axes, of `jax.vmap` or a mesh, that a function has to do with others along.

    Those that it names itself, inside of it, are among them.
    """
    names: set[str] = set()
    for equation in jaxpr.eqns:
        for key in ("axes", "axis_name"):
            value = equation.params.get(key, ())
            value = value if isinstance(value, (tuple, list)) else (value,)
            names.update(name for name in value if isinstance(name, str))
        for inner in inner_jaxprs(equation):
            names |= named_axes(inner)
    return names


def _name(equation: Any) -> str:
    """The name of a primitive, or of what newer releases wrap into one."""
    wrapped = equation.params.get("_prim")
    return equation.primitive.name if wrapped is None else type(wrapped).__name__


class Closed(NamedTuple):
    """A function that was traced, and closes over nothing."""

    of_inputs: Callable[[list], list]
    inputs: list  # what it takes, what it closed over among it
    results: list  # their shapes and dtypes
    structure: Any  # of its results
    closes: bool  # whether it closed over anything

    @classmethod
    def of(cls, run: Callable[[PyTree], PyTree], arrays: PyTree) -> "Closed":
        """`run` at arrays like these."""
        closed, shape = jax.make_jaxpr(run, return_shape=True)(arrays)
        number = len(closed.consts)
        operands = [*closed.consts, *jax.tree.leaves(arrays)]
        places = [i for i, x in enumerate(operands) if _is_input(x, i >= number)]
        rest = {i: x for i, x in enumerate(operands) if i not in places}
        rest |= {i: _nothing(x) for i, x in rest.items() if x.size == 0}

        def of_inputs(inputs: list) -> list:
            values = rest | dict(zip(places, inputs, strict=True))
            values = [values[i] for i in range(len(operands))]
            return eval_jaxpr(closed.jaxpr, values[:number], *values[number:])

        results, structure = jax.tree.flatten(shape)
        return cls(
            of_inputs=of_inputs,
            inputs=[operands[i] for i in places],
            results=results,
            structure=structure,
            closes=any(i < number for i in places),
        )


def _nothing(operand: Any) -> Any:
    """An empty operand without a trace: it holds no numbers."""
    return operand if is_extended(operand) else np.zeros(operand.shape, operand.dtype)


def _is_input(operand: Any, is_argument: bool) -> bool:
    """Other constants are part of the program."""
    return operand.size > 0 and (is_argument or isinstance(operand, Tracer))


def one_function(run: Callable[[PyTree], PyTree], arrays: PyTree) -> PyTree:
    """`run(arrays)`, as one function where it is compiled for a CPU.

    What it closes over becomes arguments.
    """
    closed = Closed.of(run, arrays)
    out = on_platform(marked(closed.of_inputs), closed.of_inputs, closed.inputs)
    return jax.tree.unflatten(closed.structure, out)


def marked(of_inputs: Callable[[list], list]) -> Callable[[list], list]:
    """A function of CPUs that is emitted as one."""
    if (ours := _ours.get()) is not None:
        ours.has_one = True

    @jax.jit
    def inside(inputs: list) -> tuple[list, list]:
        with set_xla_metadata(**_unmarked):  # for all that stands in it
            return of_inputs(inputs), _anchor(inputs)

    def called(inputs: list) -> list:
        # each by itself: without, jaxlib 0.10 aborts for some fits inside of branches
        inputs = [lax.optimization_barrier(x) for x in inputs]
        with set_xla_metadata(**_marked):
            return inside(inputs)[0]

    return called


def _anchor(inputs: list) -> list:
    """Something of each input: the compiler aborts for an input that is not used."""
    return [jnp.ravel(x)[:1] for x in inputs]
