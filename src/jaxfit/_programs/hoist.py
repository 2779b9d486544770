"""Numbers that a function holds, as inputs of the program that it is traced into.

A function from a user may hold data: `lambda p: model(p, t) - y`. Its `Reading` tells
which arrays and floats these are; here it is traced with tracers in their places, as
far as it bears them. It does not where it asks for a value, by `range`, `if` or NumPy;
such a value stays a number, and part of what the function is. A function could also
give another result in silence, by `isinstance(y, np.ndarray)` or by arithmetic in more
digits than JAX has: so each is traced both ways, and if the steps differ the results
are compared.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.core import eval_jaxpr
from jax.extend import core as jex
from jaxtyping import PyTree

from jaxfit._programs.content import content
from jaxfit._programs.fingerprint import Part

# How far two ways to the same numbers may differ, in units of rounding of the largest.
ROUNDING = 256


class Hoisted(NamedTuple):
    """A function of what it closes over too."""

    function: Callable  # (*arguments, *constants)
    constants: list
    jaxpr: Any


def hoisted(function: Callable, *arguments: Any) -> Hoisted:
    """A function that is traced once, at arguments like these, and closes over nothing.

    (`jax.closure_convert` leaves integers behind, and tracers of `jax.vmap`.)
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    structure, number = jax.tree.structure(shape), len(arguments)

    def converted(*operands: Any) -> Any:
        leaves = jax.tree.leaves(operands[:number])
        out = eval_jaxpr(closed.jaxpr, operands[number:], *leaves)
        return jax.tree.unflatten(structure, out)

    return Hoisted(converted, list(closed.consts), closed.jaxpr)


class Held:
    """The values of a reading, as a program is traced with them.

    Args:
        values: the numbers.
        inputs: tracers of them.
        static: the places of those that stay numbers; more are added in the end.
        is_plain: the functions cannot tell an input from a number, but by an error.
    """

    def __init__(
        self,
        values: Sequence,
        inputs: Sequence,
        static: frozenset[int],
        is_plain: bool,
    ):
        self.inputs, self.static, self.is_plain = inputs, set(static), is_plain
        # of their own, since they are kept by JAX and may change
        self.numbers = [v.copy() if isinstance(v, np.ndarray) else v for v in values]

    def mixed(self, static: set[int]) -> list:
        """Inputs, but numbers in some places."""
        pairs = zip(self.numbers, self.inputs, strict=True)
        return [n if i in static else t for i, (n, t) in enumerate(pairs)]


def opened(function: Any, part: Part, held: Held) -> Any:
    """A function that is traced with inputs in place of the numbers that it holds."""
    if part.put is None:
        return function
    build, chosen = functools.partial(_built, part.put), []

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        if chosen:
            return chosen[0](*args, **kwargs)
        first = _FirstCall(build, held, args, kwargs)
        static, out = first.static_places()
        held.static |= static
        chosen.append(build(held.mixed(static)))
        return chosen[0](*args, **kwargs) if out is None else out()

    return traced


def _built(put: Callable, values: Sequence) -> Any:
    return put(values, {})


class _Uses(Sequence):
    """Values that note which of them are asked for."""

    def __init__(self, values):
        self.values, self.places = values, []

    def __getitem__(self, place: Any) -> Any:
        self.places.append(place)
        return self.values[place]

    def __len__(self) -> int:
        return len(self.values)


class _FirstCall:
    """A call of a function that shows which of its values may be inputs."""

    def __init__(self, build: Callable, held: Held, args: tuple, kwargs: dict):
        uses = _Uses(held.numbers)
        build(uses)
        self.build, self.held, self.used = build, held, set(uses.places)
        leaves, self.structure = jax.tree.flatten((args, kwargs))
        self.arrays, self.rest = eqx.partition(leaves, _is_number)
        self.numeric: _Steps | None = None  # with all values as numbers

    def static_places(self) -> tuple[set[int], Callable | None]:
        """The places of values that have to stay numbers, and the call's result.

        The result is given by a function, or None if the call is still to be done.
        """
        static = self.used & self.held.static
        free = self.used - static
        if not free:
            return self.used, None
        steps = self._borne(static)
        if steps is None:
            bears = {p for p in free if self._borne(self.used - {p}) is not None}
            static = self.used - bears
            steps = self._borne(static) if bears else None
        if steps is None:
            return self.used, None
        return static, functools.partial(self._result, steps)

    def _borne(self, static: set[int]) -> "_Steps | None":
        """The steps with all other values as inputs, if they do the same."""
        try:
            steps = self._steps(static)
            if self.held.is_plain:
                return steps
            self.numeric = self.numeric or self._steps(self.used)
            numbers = [self.held.numbers[place] for place in steps.places]
            same = self.numeric.structure == steps.structure
            return (
                steps
                if same and _agree(self.numeric.jaxpr, steps.jaxpr, numbers)
                else None
            )
        except Exception:  # a user's function may fail in any way
            return None

    def _steps(self, static: set[int]) -> "_Steps":
        places = sorted(self.used - static)

        def call(inputs: list, arrays: PyTree) -> PyTree:
            values = self.held.mixed(self.used)
            for place, value in zip(places, inputs, strict=True):
                values[place] = value
            leaves = eqx.combine(arrays, self.rest)
            args, kwargs = jax.tree.unflatten(self.structure, leaves)
            return jax.tree.map(jnp.asarray, self.build(values)(*args, **kwargs))

        inputs = [self.held.inputs[place] for place in places]
        jaxpr, out = jax.make_jaxpr(call, return_shape=True)(inputs, self.arrays)
        return _Steps(jaxpr, jax.tree.structure(out), places)

    def _result(self, steps: "_Steps") -> Any:
        inputs = [self.held.inputs[place] for place in steps.places]
        flat = jex.jaxpr_as_fun(steps.jaxpr)(*inputs, *jax.tree.leaves(self.arrays))
        return jax.tree.unflatten(steps.structure, flat)


class _Steps(NamedTuple):
    """A function as traced: from inputs and arrays to its results."""

    jaxpr: Any
    structure: Any  # of the results
    places: list[int]  # of the inputs among all values


def _is_number(leaf: Any) -> bool:
    return eqx.is_array_like(leaf) and not isinstance(leaf, (bool, int))


# Do two traces compute the same?


def _agree(plain: Any, other: Any, numbers: list) -> bool:
    """Whether a trace with numbers and one with inputs in their place agree.

    By their steps or, where these differ, by their results at some arguments.
    """
    if plain.out_avals != other.out_avals:
        return False
    places = [_given(n) for n in numbers], [("argument", i) for i in _range(plain)]
    if _steps(plain, places[1]) == _steps(other, places[0] + places[1]):
        return True
    rng = np.random.default_rng(0)
    drawn = [_like(rng, aval) for aval in plain.in_avals]

    def both(drawn: list, numbers: list) -> tuple[list, list]:
        return jex.jaxpr_as_fun(plain)(*drawn), jex.jaxpr_as_fun(other)(
            *numbers, *drawn
        )

    program = jax.jit(both).lower(drawn, numbers).compile()
    negative = [a if a.dtype.kind in "ub" else (-a).astype(a.dtype) for a in drawn]
    results = program(drawn, numbers), program(negative, numbers)
    return all(all(map(_is_close, *result)) for result in results)


def _range(jaxpr: Any) -> range:
    return range(len(jaxpr.in_avals))


def _given(number: Any) -> Hashable:
    """What a number in a trace is, whatever its digits were before."""
    array = np.asarray(number)
    if array.dtype.kind in "iufc":
        array = array.astype(dtypes.canonicalize_dtype(array.dtype))
    return content(array)


def _steps(closed: Any, inputs: Sequence) -> Any:
    """A trace in words: what is done, to which inputs and results."""
    jaxpr = getattr(closed, "jaxpr", closed)
    constants = map(_given, getattr(closed, "consts", ()))
    names = dict(zip(jaxpr.constvars, constants, strict=True))
    names.update(zip(jaxpr.invars, inputs, strict=True))

    def name(atom: Any) -> Hashable:
        return _given(atom.val) if isinstance(atom, jex.Literal) else names[atom]

    steps = []
    for number, equation in enumerate(jaxpr.eqns):
        taken = [name(atom) for atom in equation.invars]
        inside, rest = [], {}
        for key, value in equation.params.items():
            many = value if isinstance(value, (tuple, list)) else (value,)
            if any(hasattr(one, "eqns") for one in many):
                inside += [_steps(one, _inner(one, taken)) for one in many]
            elif not callable(value):
                rest[key] = str(value)
        kinds = [str(var.aval) for var in equation.outvars]
        steps.append((equation.primitive.name, taken, inside, rest, kinds))
        names.update(
            {var: ("result", number, i) for i, var in enumerate(equation.outvars)}
        )
    return steps, [name(atom) for atom in jaxpr.outvars]


def _inner(sub: Any, taken: list) -> list:
    """What the variables of an inner trace stand for, as far as that is plain."""
    count = len(getattr(sub, "jaxpr", sub).invars)
    return taken if count == len(taken) else [("inner", i) for i in range(count)]


def _like(rng: np.random.Generator, aval: Any) -> Any:
    """Numbers of some shape and type, positive and near one."""
    if jnp.issubdtype(aval.dtype, jnp.integer):
        return np.ones(aval.shape, aval.dtype)
    return np.asarray(rng.uniform(0.5, 1.5, aval.shape)).astype(aval.dtype)


def _is_close(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "fc":
        return np.array_equal(a, b)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    a, b = a[finite], b[finite]
    size = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
    limit = ROUNDING * np.finfo(a.dtype).eps * size
    return bool(np.all(np.abs(a - b) <= limit))
