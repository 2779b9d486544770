"""A program: a function of this library, jitted for calls that are alike."""

import functools
import threading
from collections.abc import Hashable
from typing import Any

import jax

from jaxfit._programs.backend import is_on_one_device, is_traced, platform_of
from jaxfit._programs.call import INPUT, Call
from jaxfit._programs.hoist import Held, opened
from jaxfit._programs.one_function import program_of_ours

# One LLVM module compiles a fit in three quarters of the time that several in parallel
# take, and XLA's older emitters halve it; the program runs as fast. Releases of jax
# that have no such choice any more refuse it.
ONE_MODULE = {
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_backend_optimization_level": 3,
}
COMPILER_OPTIONS = {**ONE_MODULE, "xla_cpu_use_fusion_emitters": False}, ONE_MODULE
IN_HASTE = {"xla_backend_optimization_level": 0}


class Program:
    """A jitted function of the inputs among some leaves, and of the values in others.

    Args:
        call: like all that it is to be used for.
    """

    def __init__(self, call: Call):
        self.key: Hashable = None
        # places of values that are part of it
        self.static: frozenset[int] = frozenset()
        self._alive = call.reading.alive
        self._current = threading.local()

        def program(inputs: list, values: list, donated: tuple) -> Any:
            return self._traced(self._current.call, inputs, values, donated)

        named: Any = call.function
        while isinstance(named, functools.partial):
            named = named.func
        program.__name__ = program.__qualname__ = named.__name__.lstrip("_")
        self._inner = jax.jit(program)
        options = compiler_options(call.is_hasty)
        outermost = {"donate_argnums": 2, "compiler_options": options}
        self._plain = jax.jit(lambda *args: program(*args), **outermost)
        self._in_one_function = jax.jit(program, **outermost)
        self._bears_it = True  # the compiler, as far as is known
        self._ahead: dict[Hashable, Any] = {}  # executables by shapes and types

    def compiled(self, call: Call) -> Any:
        """The executable for operands like those of a call."""
        operands = call.inputs, call.new_values(), ()
        key = tuple(map(jax.typeof, jax.tree.leaves(operands)))
        if key in self._ahead:
            return self._ahead[key]
        self._current.call = call
        try:
            self._ahead[key] = self._compiled(operands)
        finally:
            del self._current.call
        return self._ahead[key]

    def _compiled(self, operands: tuple) -> Any:
        if self._bears_it and is_on_one_device(operands):
            with program_of_ours(platform_of(operands)) as ours:
                lowered = self._in_one_function.lower(*operands)
                try:
                    return lowered.compile()
                except jax.errors.JaxRuntimeError:
                    if not ours.has_one:
                        raise
            self._bears_it = False
        return self._plain.lower(*operands).compile()

    def __call__(self, call: Call, donated: tuple) -> Any:
        self._current.call = call
        operands = call.inputs, call.new_values(), donated
        try:
            if is_traced():
                return self._inner(*operands)
            if not (self._bears_it and is_on_one_device(operands)):
                return self._plain(*operands)
            with program_of_ours(platform_of(operands)) as ours:
                try:
                    return self._in_one_function(*operands)
                except jax.errors.JaxRuntimeError:
                    if not ours.has_one:  # or it ran before
                        raise
            self._bears_it = False
            return self._plain(*operands)
        finally:
            del self._current.call

    def _traced(self, call: Call, inputs: list, values: list, donated: tuple) -> Any:
        """The function, with as many values as inputs as the user's functions bear.

        Where they fail with what they bore at first, or keep a tracer, all values are
        numbers. A function that does not bear copies of its objects is called itself.
        """
        before, everything = call.reading.snapshot(), frozenset(range(len(values)))
        first = self.static | call.static
        is_movable = call.reading.is_movable
        copied = dict.fromkeys((first, everything)) if is_movable else ()
        results, held = None, None
        for static, is_copied in [*((s, True) for s in copied), (everything, False)]:
            held = Held(call.reading.values, values, static, call.reading.is_plain)
            arguments = _arguments(call, inputs, held if is_copied else None)
            try:
                results = call.function(*arguments, *donated)
            except Exception:
                before.take_back_tracers()
                if not is_copied:
                    raise
                continue
            if not before.take_back_tracers() or static == everything:
                break
        before.note_writes()
        assert held is not None  # the last way is always there
        self.static |= held.static
        return results


def _arguments(call: Call, inputs: list, held: Held | None) -> tuple:
    """The arguments of a call, with tracers for inputs and for what functions hold."""
    remaining = iter(inputs)
    leaves = []
    for leaf, part in zip(call.leaves, call.parts, strict=True):
        if part is INPUT:
            leaves.append(next(remaining))
        else:
            leaves.append(leaf if held is None else opened(leaf, part, held))
    return jax.tree.unflatten(call.structure, leaves)


@functools.cache
def compiler_options(is_hasty: bool = False) -> dict[str, Any] | None:
    """The first of `COMPILER_OPTIONS` that this release of jax knows."""
    for options in COMPILER_OPTIONS:
        options = options | (IN_HASTE if is_hasty else {})
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        return options
    return None
