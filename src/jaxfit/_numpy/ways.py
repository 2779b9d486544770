"""How a function of the user's becomes one of JAX.

    JAX      it is written in JAX, and is taken as it is
    NUMPY    it is traced through NumPy's own protocols
    HELD     so too, but what is not a parameter (x) stays known to NumPy, which may ask
             for its numbers
    HOST     NumPy computes it, one call an evaluation

They are tried in this order; but what JAX can trace and does not call JAX is taken as
written for NumPy, where `v = y[:5]; v += b` changes y. What was found holds for all
functions of the same code; where one fails after all, since it closes over another
function, it is looked at anew. What is written in JAX is not compared with NumPy: it is
looked at anew wherever a program has to be made for it.
"""

import enum
import functools
import itertools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact, PyTree

from jaxfit._numpy.agreement import agree
from jaxfit._numpy.differences import Differences
from jaxfit._numpy.host import NotNumbers, OnHost, epsilon_of, fresh, values_of
from jaxfit._numpy.out_shape import OutShape
from jaxfit._numpy.speaking import SpeakingNumPy
from jaxfit._programs.call import INPUTS, new
from jaxfit._programs.compiled import IsNew, called_in_passing, unless_new
from jaxfit._programs.errors import is_theirs, place_of
from jaxfit._programs.fingerprint import ClosesOverTracer, Reading
from jaxfit._programs.places import Snapshot

REMEMBERED = 512  # codes, and functions on the host


class HostModelWarning(UserWarning):
    """A model cannot be compiled: NumPy computes it, and differences its derivatives.

    It takes one call an evaluation and parameter, as SciPy does. `host=True` asks for
    that in silence.
    """


class Differs(Exception):
    """A compiled function does not give what NumPy itself computes, and in what."""

    def __init__(self, user: "UserFunction", reason: str):
        super().__init__(reason)
        self.user, self.reason = user, reason


class Way(enum.Enum):
    """How a function is computed; see above."""

    JAX = "jax"
    NUMPY = "numpy"
    HELD = "held"
    HOST = "host"


TRACED = Way.JAX, Way.NUMPY, Way.HELD


class UserFunction(NamedTuple):
    """A function of the user's, and how it is called."""

    function: Callable
    parameters: PyTree  # where it starts
    data: PyTree  # what else it is called with
    call: Callable  # (function, parameters, data) -> its result
    name: str  # for people
    held: Callable | None = None
    """(function, data) -> one that is called alike, and knows the data itself."""
    ways: tuple[Way, ...] = TRACED  # to be tried
    is_for_host: bool = False  # it is to be left to NumPy, in silence
    differences: Differences = Differences()

    def at(self, function: Callable, parameters: PyTree) -> Any:
        """What a function gives in its place, of arrays that it may write to."""
        return self.call(function, fresh(parameters), fresh(self.data))


def in_jax(users: Sequence[UserFunction], run: Callable[..., Any]) -> Any:
    """What `run` makes of functions as those of JAX.

    Args:
        users: the functions.
        run: of as many functions of JAX; raises `Differs` where one of them computes
            something else.
    """
    if not users:
        return run()
    first, *others = users

    def with_first(function: Callable) -> Any:
        return in_jax(others, functools.partial(run, function))

    return _one_in_jax(first, with_first)


def _one_in_jax(user: UserFunction, run: Callable[[Callable], Any]) -> Any:
    """`in_jax` of one function."""
    if user.is_for_host:
        return run(_on_host(user))
    way = _ways.get(_code_of(user.function))
    if way is None:
        read = _as_read(user)
        if read is not None and read.key in _hosts:
            return run(_on_host(user))
        return _as_found(user, _found(user), run)
    try:
        if way is Way.JAX:  # which is compared with nothing
            with unless_new():
                return run(user.function)
        return run(_as_way(user, way))
    except IsNew:
        found = _found(user)
    except Differs as difference:
        other = _Found.different(user, difference)
        found = _found(user)
        if found.way is way:
            found = other
    except Exception:
        found = _found(user)
        if found.way is way:
            raise
    return _as_found(user, found, run)


def _as_found(user: UserFunction, found: "_Found", run: Callable) -> Any:
    if found.way is Way.HOST:
        try:
            function = _on_host(user)
        except NotNumbers:
            return run(user.function)  # which says what is wrong
        _warn(user, found.reason)
        return run(function)
    try:
        return run(_as_way(user, found.way))
    except Differs as difference:
        return _as_found(user, _Found.different(user, difference), run)


def compare(
    user: UserFunction,
    points: Sequence[PyTree],
    values: Inexact[np.ndarray, " k"],
    size: float,
) -> Inexact[np.ndarray, " l"]:
    """Hold what a compiled function gave against what NumPy itself computes.

    Args:
        user: the function, one of those that were compiled last.
        points: parameters.
        values: what the program gave at each, and what follows.
        size: of what the values may be small differences of.

    Returns:
        What follows.

    Raises:
        Differs: where they are not the same, to rounding.
    """
    with np.errstate(all="ignore"), called_in_passing():
        truths = [values_of(user.at(user.function, p)).ravel() for p in points]
    truth = np.concatenate(truths)
    compiled, following = values[: truth.size], values[truth.size :]
    if truth.shape != compiled.shape or not agree(truth, compiled, size):
        raise Differs(user, "traced by JAX it gives other values than NumPy")
    return following


# What was found


class _Found(NamedTuple):
    way: Way
    reason: str = ""

    @classmethod
    def different(cls, user: UserFunction, difference: Differs) -> "_Found":
        """What follows for a function where it, or another, differs from NumPy's."""
        if difference.user is not user:
            raise difference
        return cls(Way.HOST, f": {difference.reason}")


_ways: OrderedDict[Hashable, Way] = OrderedDict()  # by code
# As they are read, with what must live on:
_hosts: OrderedDict[Hashable, list] = OrderedDict()  # told already


def _found(user: UserFunction) -> _Found:
    """The first way that it can go, and why no other."""
    key = _code_of(user.function)
    user, before = _as_copy(user)
    uses_jax: list[bool] = []
    errors: dict[Way, Exception | None] = {}
    for way in user.ways:
        errors[way] = _failure(user, way, lambda: uses_jax.append(True))
        before.take_back()
        if way is not Way.JAX and errors[way] is None:
            break
    borne = [way for way, error in errors.items() if error is None]
    if borne[:1] == [Way.JAX] and len(borne) > 1 and not uses_jax:
        borne = borne[1:]
    _ways.pop(key, None)
    if borne:
        _remember(_ways, key, borne[0])
        return _Found(borne[0])
    error = errors.get(Way.NUMPY) or errors[Way.JAX]
    assert error is not None
    return _Found(Way.HOST, _why(error))


def _as_copy(user: UserFunction) -> tuple[UserFunction, Snapshot]:
    """A function to try, and where it can write to: nothing is to be left there.

    It holds arrays of its own, since JAX remembers how it has converted one, and x64
    may be another later.
    """
    reading = Reading()
    try:
        part = reading(user.function)
    except (ClosesOverTracer, RecursionError):
        return user, Snapshot([])
    if part.put is not None and reading.is_movable:
        values = [new(value) for value in reading.values]
        user = user._replace(function=part.put(values, {}))
    return user._replace(data=fresh(user.data)), reading.snapshot()


def _failure(
    user: UserFunction, way: Way, on_jax: Callable[[], None]
) -> Exception | None:
    """Why it cannot be traced so, or None if it can.

    Args:
        on_jax: called where a function in NumPy calls JAX.
    """
    function = _as_way(user, way)
    if isinstance(function, SpeakingNumPy):
        function = function.traced(on_jax)
    traced = user.parameters, None if way is Way.HELD else user.data
    leaves, structure = jax.tree.flatten(traced)
    is_input = [isinstance(leaf, INPUTS) for leaf in leaves]

    def result(inputs: list) -> jax.Array:
        remaining = iter(inputs)
        pairs = zip(leaves, is_input, strict=True)
        mixed = [next(remaining) if is_traced else leaf for leaf, is_traced in pairs]
        parameters, data = jax.tree.unflatten(structure, mixed)
        data = user.data if way is Way.HELD else data
        return jnp.asarray(user.call(function, parameters, data))

    try:
        with jax.enable_x64(True):
            jax.eval_shape(result, list(itertools.compress(leaves, is_input)))
    except Exception as error:  # whatever its code may raise
        return error
    return None


def _as_way(user: UserFunction, way: Way) -> Callable:
    if way is Way.JAX:
        return user.function
    if way is Way.NUMPY:
        return SpeakingNumPy(user.function)
    assert user.held is not None
    return SpeakingNumPy(user.held(user.function, user.data))


def _code_of(function: Any) -> Hashable:
    """What functions that are alike have in common."""
    for _ in range(100):
        if hasattr(function, "__code__"):
            return function.__code__
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return type(function)


def _remember(cache: OrderedDict, key: Hashable, value: Any) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > REMEMBERED:
        cache.popitem(last=False)


# On the host


def _on_host(user: UserFunction) -> OnHost:
    """The function, which NumPy computes."""
    shapes: list[OutShape] = []
    precisions: list[float] = []

    def probe(*args: Any, **kwargs: Any) -> Any:
        result = user.function(*args, **kwargs)
        leaves = jax.tree.leaves((args, kwargs))
        shapes.append(OutShape.of(values_of(result), leaves))
        precisions.append(epsilon_of(result))
        return result

    first = fresh(user.at(probe, user.parameters))  # it may be written to again
    differences = user.differences._replace(epsilon=precisions[0])
    function = OnHost(user.function, shapes[0], differences)
    function.first = first
    if isinstance(user.parameters, np.ndarray):
        function.where = user.parameters.tobytes()
    return function


def _remember_as_read(cache: OrderedDict[Hashable, list], user: UserFunction) -> bool:
    """Whether it is new there, for all that can be known."""
    read = _as_read(user)
    if read is None:
        return True
    is_new = read.key not in cache
    _remember(cache, read.key, read.alive)
    return is_new


def _as_read(user: UserFunction) -> "_Read | None":
    """What tells it from other functions; None where that cannot be known."""
    reading = Reading()
    try:
        key = reading(user.function).key
    except (ClosesOverTracer, RecursionError):
        return None
    return _Read(key, reading.alive) if reading.is_known else None


class _Read(NamedTuple):
    key: Hashable
    alive: list  # whose identities are in the key


def _warn(user: UserFunction, reason: str) -> None:
    """Tell the user once that a function is on the host."""
    if not _remember_as_read(_hosts, user):
        return
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and not is_theirs(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"{user.name} runs on the host, by NumPy, with differences for its "
        f"derivatives, since it cannot be compiled{reason}. Say host=True if that is "
        "meant.",
        category=HostModelWarning,
        stacklevel=level,
    )


def _why(error: Exception) -> str:
    """The line and the reason."""
    from jaxfit._numpy.needs import NeedsHost

    if isinstance(error, NeedsHost):
        return f"{error.place}: {error.reason}"
    text = str(error).partition("\n")[0]
    return f"{place_of(error)}: traced, it raises {type(error).__name__}: {text}"
