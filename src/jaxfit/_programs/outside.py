"""Functions of the user's that run outside of programs, on the host.

A program asks for such a function by a token, one of its inputs: the function itself is
no part of it. XLA asks from a thread of its own. The question is handed to the thread
that runs the program, which calls the function for it: there an error is raised as it
is, an interrupt is heard, and what belongs to a thread (`np.errstate`) holds.

Numbers travel as the bits that they are: in XLA's threads x64 may be off, and JAX would
cut them.
"""

import contextvars
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

from jaxfit._programs.splits import Child, Split, Wrapper

Bits = UInt32[Any, " k"]

_functions: dict[int, "weakref.ref[Outside]"] = {}
_desks: dict[int, "_Desk"] = {}
_tokens = itertools.count(1)
_lock = threading.Lock()


class Outside(Wrapper):
    """A function that is called on the host, wherever it stands in a program.

    Subclasses say what it computes, `answer`, and what of it a program depends on,
    `program_key`.
    """

    def __init__(self) -> None:
        self._number = next(_tokens)
        self.token: Any = np.array(float(self._number))  # as it is traced
        self._calls = threading.RLock()  # one at a time
        _functions[self._number] = weakref.ref(self)
        weakref.finalize(self, _functions.pop, self._number, None)

    @property
    def program_key(self) -> Any:
        """What of it is part of a program; hashable."""
        raise NotImplementedError

    def answer(self, question: Any, arrays: list[np.ndarray]) -> Sequence[np.ndarray]:
        """What it computes of these arrays, of the shapes that were promised."""
        raise NotImplementedError

    def asked(
        self, question: Any, arrays: Sequence[Array], shapes: Sequence[Any]
    ) -> list[Array]:
        """In a program: the answer, arrays of these shapes and dtypes."""
        sent = _Parcel.of([jax.typeof(array) for array in arrays])
        back = _Parcel.of(shapes)
        bits = _to_bits([jnp.asarray(self.token, float), *arrays])

        def call(bits: Any) -> Bits:
            return _answered(question, sent, back, np.array(bits))

        kind = jax.ShapeDtypeStruct((back.length,), np.uint32)
        return back.arrays(
            jax.pure_callback(call, kind, bits, vmap_method="sequential")
        )

    def split(self) -> Split:
        """Its token alone is an input; the function is none of the program's."""

        head = type(self), self.program_key
        return Split(
            head, [Child(self.token)], lambda parts: self._with_token(parts[0])
        )

    def _with_token(self, token: Any) -> "Outside":
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), token=token)
        return twin

    def called(self, question: Any, arrays: list[np.ndarray]) -> Sequence[np.ndarray]:
        """`answer`, one call at a time."""
        with self._calls:
            return self.answer(question, arrays)


# Bits


class _Parcel(NamedTuple):
    """Arrays as one vector of bits: their shapes and dtypes."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, shapes: Sequence[Any]) -> "_Parcel":
        """Of anything with shapes and dtypes."""
        return cls(
            tuple(tuple(s.shape) for s in shapes),
            tuple(np.dtype(s.dtype) for s in shapes),
        )

    @property
    def lengths(self) -> list[int]:
        """Words of each array."""
        sizes = [int(np.prod(shape, dtype=int)) for shape in self.shapes]
        return [n * _words(d) for n, d in zip(sizes, self.dtypes, strict=True)]

    @property
    def length(self) -> int:
        """Words in all."""
        return sum(self.lengths)

    def arrays(self, bits: Array) -> list[Array]:
        """In a program: the arrays."""
        ends = list(itertools.accumulate(self.lengths))
        parts = jnp.split(bits, ends[:-1])
        kinds = zip(parts, self.shapes, self.dtypes, strict=True)
        return [_from_bits(part, shape, dtype) for part, shape, dtype in kinds]

    def on_host(self, bits: np.ndarray) -> list[np.ndarray]:
        """On the host: the arrays, with memory of their own."""
        ends = list(itertools.accumulate(self.lengths))
        parts = np.split(bits, ends[:-1])
        kinds = zip(parts, self.shapes, self.dtypes, strict=True)
        return [_of_words(part, dtype).reshape(shape) for part, shape, dtype in kinds]

    def packed(self, arrays: Sequence[Any] | None) -> Bits:
        """On the host: the bits of arrays, or of NaN."""
        if arrays is None:
            return np.full(self.length, 0xFFFFFFFF, np.uint32)  # NaN in any float
        kinds = zip(arrays, self.dtypes, strict=True)
        return np.concatenate([_words_of(np.asarray(a, d)) for a, d in kinds])


def _words(dtype: np.dtype) -> int:
    return max(dtype.itemsize // 4, 1)


def _words_of(array: np.ndarray) -> Bits:
    if array.dtype.itemsize < 4:
        return array.ravel().astype(np.uint32)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint32)


def _of_words(words: Bits, dtype: np.dtype) -> np.ndarray:
    if dtype.itemsize < 4:
        return words.astype(dtype)
    return words.view(dtype)


def _to_bits(arrays: Sequence[Array]) -> Array:
    parts = []
    for array in arrays:
        dtype = np.dtype(array.dtype)
        if dtype.kind == "c":
            array = jnp.stack([array.real, array.imag], axis=-1)
        if dtype.itemsize < 4:
            bits = array.astype(jnp.uint32)
        else:
            bits = lax.bitcast_convert_type(array, jnp.uint32)
        parts.append(jnp.ravel(bits))
    return jnp.concatenate(parts)


def _from_bits(bits: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    if dtype.itemsize < 4:
        return bits.reshape(shape).astype(dtype)
    if dtype.kind == "c":
        part = np.dtype(f"f{dtype.itemsize // 2}")
        real, imag = jnp.moveaxis(_from_bits(bits, (*shape, 2), part), -1, 0)
        return lax.complex(real, imag)
    words = _words(dtype)
    split = bits.reshape(*shape, words) if words > 1 else bits.reshape(shape)
    return lax.bitcast_convert_type(split, dtype)


# Questions and answers


def _answered(question: Any, sent: _Parcel, back: _Parcel, bits: Bits) -> Any:
    """What the program gets: the bits of the answer."""
    number = int(bits[:2].view(float)[0])
    reference = _functions.get(number)
    function = None if reference is None else reference()
    if function is None:  # it was thrown away while the program ran
        return back.packed(None)
    arrays = sent.on_host(bits[2:])
    asked = _Request(function, question, arrays)
    desk = _desks.get(number)
    if desk is None or not desk.take(asked):
        asked.work()
    if asked.error is not None:
        raise asked.error
    return back.packed(asked.answer)


class _Request:
    """A call that is asked for."""

    def __init__(self, function: Outside, question: Any, arrays: list[np.ndarray]):
        self.function, self.question, self.arrays = function, question, arrays
        self.answer: Sequence[np.ndarray] | None = None
        self.error: BaseException | None = None
        self.is_done = threading.Event()

    def work(self) -> None:
        """Call the function; whoever asked raises its error."""
        try:
            self.answer = self.function.called(self.question, self.arrays)
        except BaseException as error:
            self.error = error


class _Desk:
    """Where a thread takes requests until its program has ended."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock, self._is_closed = threading.Lock(), False
        self._thread = threading.get_ident()
        self.error: BaseException | None = None

    def take(self, request: _Request) -> bool:
        """Have it worked on, unless nobody does any more."""
        with self._lock:
            if self._is_closed or self._thread == threading.get_ident():
                return False
            self._requests.put(request)
        request.is_done.wait()
        return True

    def finish(self) -> None:
        """From the program's thread: it has ended."""
        self._requests.put(None)

    def serve(self) -> None:
        """Work until the program has ended. After an error all answers are NaN."""
        while True:
            try:
                request = self._requests.get()
            except BaseException as error:  # an interrupt
                self.error = self.error or error
                continue
            if request is None:
                break
            self._serve(request)
        with self._lock:
            self._is_closed = True
        while not self._requests.empty():  # of other programs
            if (request := self._requests.get()) is not None:
                self._serve(request)

    def _serve(self, request: _Request) -> None:
        try:
            if self.error is None:
                request.work()
                self.error, request.error = request.error, None
        finally:
            request.is_done.set()


def served(leaves: Sequence[Any], run: Callable[[], Any]) -> Any:
    """What a program gives, while this thread calls the functions that it asks for.

    Args:
        leaves: what the program is called with.
        run: runs the program.

    Raises:
        BaseException: what a function raised, or an interrupt.
    """
    numbers = {leaf._number for leaf in leaves if isinstance(leaf, Outside)}
    if not numbers:
        return run()
    desk, outcome = _Desk(), _Outcome()
    with _lock:
        own = [number for number in numbers if number not in _desks]
        _desks.update(dict.fromkeys(own, desk))
    context = contextvars.copy_context()
    settings = jax.config.jax_enable_x64, jax.config.jax_default_device

    def work() -> None:
        try:
            with jax.enable_x64(settings[0]), jax.default_device(settings[1]):
                outcome.result = jax.block_until_ready(context.run(run))
        except BaseException as error:
            outcome.error = error
        finally:
            desk.finish()

    thread = threading.Thread(target=work, name="jaxfit", daemon=True)
    try:
        thread.start()
        desk.serve()
    finally:
        with _lock:
            for number in own:
                del _desks[number]
    thread.join()
    if desk.error is not None:
        raise desk.error
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


class _Outcome:
    """How a program ended."""

    result: Any = None
    error: BaseException | None = None
