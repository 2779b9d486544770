"""What an error says of a user's function: what it does, where, and what to write."""

import contextlib
import linecache
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MACHINERY = {"jax", "jaxlib", "numpy", "scipy", "equinox", "jaxfit", "jaxtyping"}
_MACHINERY |= {"beartype"}  # around functions in tests
_MACHINERY |= sys.stdlib_module_names - {"__main__"}


@contextlib.contextmanager
def explained(function: Any) -> Iterator[None]:
    """Explain why a function could not be traced."""
    try:
        yield
    except Exception as error:
        place = place_of(error)
        reason = _reason(error, place)
        if reason is None:
            raise
        name = getattr(function, "__name__", place.function)
        raise TypeError(f"{name} cannot be traced by JAX{place}: {reason}") from error


class Place(NamedTuple):
    """The last line of the user's that was running, and what it had called."""

    function: str
    where: str  # "" if none of the user's was
    code: str
    called: tuple[str, ...]  # modules, from the line on

    def __str__(self) -> str:
        if not self.where:
            return ""
        return f", {self.where}" + (f", `{self.code}`" if self.code else "")


def place_of(error: Exception) -> Place:
    frames = list(traceback.walk_tb(error.__traceback__))
    theirs = [k for k, (frame, _) in enumerate(frames) if is_theirs(frame)]
    if not theirs:
        return Place("The function", "", "", ())
    frame, line = frames[theirs[-1]]
    name, file = frame.f_code.co_name, frame.f_code.co_filename
    code = linecache.getline(file, line, frame.f_globals).strip()
    modules = (f.f_globals.get("__name__", "") for f, _ in frames[theirs[0] :])
    return Place(name, f"{file}:{line}", code, tuple(modules))


def is_theirs(frame: FrameType) -> bool:
    """Whether it is a frame of the user's."""
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package not in _MACHINERY


# Reasons


def _reason(error: Exception, place: Place) -> str | None:
    """What the function does that cannot be traced, and what to write in its place."""
    text = str(error)
    for kind, reason in _KINDS:
        if isinstance(error, kind):
            if any(module.startswith("scipy.integrate") for module in place.called):
                return _INTEGRAL
            return reason(text, place.code) if callable(reason) else reason
    if not isinstance(error, TypeError):
        return None
    return next((reason for sign, reason in _SIGNS if re.search(sign, text)), None)


def _of_number(text: str, code: str) -> str:
    """The reason where a number's value is asked for."""
    used = re.findall(r"\bmath\.(\w+)\(", code)
    names = dict.fromkeys(name for name in used if callable(getattr(math, name, None)))
    if names:
        told = ", ".join(f"`{_counterpart(name)}` for `math.{name}`" for name in names)
        return f"the math module takes Python numbers. Write {told}."
    if re.search("`(float|int)` function", text) or ".item()" in code:
        return (
            "it asks for the value of a number, by float(), int(), .item() or a "
            "function of the math module. Leave float() out, and write `jnp.exp` for "
            "`math.exp`."
        )
    return (
        "it asks for the value of a number, by `if`, `while`, `and`, `max`, range() or "
        "a length. Write `jnp.where(condition, a, b)`, `jnp.maximum(a, b)`, or give "
        "what sets a length as a plain number, not as a parameter."
    )


def _counterpart(name: str) -> str:
    """JAX's function for one of Python's math."""
    if hasattr(jnp, name):
        return f"jnp.{name}"
    special = {"lgamma": "gammaln"}.get(name, name)
    if hasattr(jax.scipy.special, special):
        return f"jax.scipy.special.{special}"
    return {"fabs": "jnp.abs"}.get(name, "its counterpart in jax.numpy")


_INTEGRAL = (
    "it calls scipy.integrate, which takes plain numbers. Write an integral as a sum "
    "over nodes, `t, w = np.polynomial.legendre.leggauss(50)` (of -1 to 1) and "
    "`jnp.sum(w * g(t))`, or jax.scipy.integrate.trapezoid; solve a differential "
    "equation by jax.experimental.ode.odeint or diffrax."
)
_COUNTS = (
    "it counts or looks up by a number that is traced. Write `jnp.take(a, i)` for "
    "`a[i]`, `jax.lax.fori_loop` for range(), or give it as a plain number, not as a "
    "parameter."
)
_KINDS: tuple[tuple[type, str | Callable], ...] = (
    (
        jax.errors.TracerArrayConversionError,
        "it calls NumPy or SciPy. Write jax.numpy instead (`import jax.numpy as jnp` "
        "and `jnp.exp` for `np.exp`), and jax.scipy for scipy.",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "it picks elements by a boolean mask, and how many is not known. Write "
        "`jnp.where(condition, a, b)`.",
    ),
    (jax.errors.TracerIntegerConversionError, _COUNTS),
    (jax.errors.ConcretizationTypeError, _of_number),
)
_SIGNS = (
    ("Only integer scalar arrays can be converted to a scalar index", _COUNTS),
    (
        "JAX arrays are immutable",
        "it assigns to a part of an array. Write `y = y.at[i].set(value)`.",
    ),
    (
        r"unsupported format string passed to \w*Tracer",
        "it writes a number into a text, and there is none before the program runs. "
        'Write `jax.debug.print("a = {a}", a=a)`, or leave the text out.',
    ),
)


# Derivatives

ONLY_REVERSE = (
    "The function holds a custom_vjp, as diffrax's adjoints and odeint do, which has "
    "derivatives by reverse mode alone. Leave Options(jac=...) out, or say jac='rev'."
)


def is_only_reverse(error: Exception) -> bool:
    """Whether a custom_vjp refused to be differentiated forwards."""
    return isinstance(error, TypeError) and bool(
        re.search(r"\(jvp\) to a custom_vjp", str(error))
    )


# Numbers


def what_is_not_finite(residual: Any, jacobian: Any) -> str:
    """How many residuals or derivatives are not finite, and where the first is.

    Args:
        residual: of any shape.
        jacobian: a row for each residual. Which of its columns are at fault forward
            mode cannot say: zero times infinity is NaN in all.
    """
    residual, jacobian = np.asarray(residual), np.asarray(jacobian)
    wrong, total = ~np.isfinite(residual), residual.size
    if wrong.any():
        number, first = int(wrong.sum()), _index(np.argwhere(wrong)[0])
        return f"{number} of {total} residuals are not finite, the first at {first}"
    wrong = ~np.isfinite(jacobian).reshape(total, -1).all(axis=1)
    if wrong.any():
        first = _index(np.unravel_index(np.argmax(wrong), residual.shape))
        return (
            f"all {total} residuals are finite, and the derivatives of "
            f"{int(wrong.sum())} are not, the first at {first}"
        )
    return "residuals and derivatives are finite, and their squares are not"


def _index(place: Any) -> str:
    numbers = ", ".join(str(int(k)) for k in place)
    return f"index {numbers}" if len(place) < 2 else f"index ({numbers})"
