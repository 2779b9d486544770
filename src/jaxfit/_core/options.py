"""Options of a fit, and their defaults for each dtype."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxfit._linalg.precision import precision_of
from jaxfit._rows.ways import Chunked, Sharded, Whole
from jaxfit.losses import Likelihood, Loss


def _is_known(value: Any) -> bool:
    return value is not None and not isinstance(value, Tracer)


def _check_number(name: str, value: Any, least: float) -> None:
    if not _is_known(value):
        return
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iuf" or not array >= least:
        raise ValueError(f"{name} is {value!r}; give one number of at least {least}.")


class Options(eqx.Module):
    """How a fit is done. Every number is traced: a new one does not compile again.

    A stopping test that passes ends the fit only where the certificate of `Solution`
    holds too. A tolerance of None is the default for the dtype (float64 / float32 in
    parentheses), 0 turns the test off.

    Args:
        ftol: the cost reduction that the next full Newton step predicts, relative to
            the cost (1e-19 / 1e-9).
        xtol: the length of an accepted step relative to that of x, both scaled by
            `x_scale` (1e-12 / 1e-6).
        gtol: the cosine of the angle between the residuals and a column of the
            Jacobian, projected at bounds (1e-14 / 1e-6).
        max_steps: the number of points at which `fn` is evaluated, the start included
            (100 for each parameter, at least 1000).
        x_scale: "jac", which scales each parameter by the norm of its Jacobian column
            (the largest so far), or characteristic sizes of the parameters: a positive
            number or a pytree that matches or prefixes `x0`.
        jac: None for the cheaper of forward and reverse mode (for reverse mode where
            `fn` holds a `jax.custom_vjp`, which has no other), "fwd", "rev", or a
            function of (x, data) that returns what `jax.jacobian(fn)(x, data)` would.
        derivative: how the solution is differentiated: "exact", or "gauss-newton",
            which leaves second derivatives of the residuals out of the Hessian: faster,
            and wrong where residuals are large and the model curved.
        one_function: whether the fit may be one function of the machine on CPUs, and
            not hundreds of small kernels: None, where this was tried and can do no
            harm; True, in any program; False, never. See `_programs/one_function.py`.
    """

    ftol: ArrayLike | None = None
    xtol: ArrayLike | None = None
    gtol: ArrayLike | None = None
    max_steps: ArrayLike | None = None
    x_scale: Any = eqx.field(
        default="jac",
        converter=lambda x: None if isinstance(x, str) and x == "jac" else x,
    )
    jac: str | Callable | None = eqx.field(default=None, static=True)
    derivative: str = eqx.field(default="exact", static=True)
    one_function: bool | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        _check_number("ftol", self.ftol, 0)
        _check_number("xtol", self.xtol, 0)
        _check_number("gtol", self.gtol, 0)
        _check_number("max_steps", self.max_steps, 1)
        if not (self.jac in (None, "fwd", "rev") or callable(self.jac)):
            raise ValueError(
                f"jac is {self.jac!r}; give None, 'fwd', 'rev' or a function (x, data)."
            )
        if self.derivative not in ("exact", "gauss-newton"):
            raise ValueError(
                f"derivative is {self.derivative!r}; give 'exact' or 'gauss-newton'."
            )
        if self.one_function not in (None, True, False):
            raise ValueError(
                f"one_function is {self.one_function!r}; give None, True or False."
            )
        for leaf in jax.tree.leaves(self.x_scale):
            if isinstance(leaf, str):
                raise ValueError(
                    f"x_scale is {leaf!r}; give 'jac' or positive numbers."
                )
            if _is_known(leaf) and not (
                np.all(np.asarray(leaf) > 0) and np.all(np.isfinite(np.asarray(leaf)))
            ):
                raise ValueError(
                    f"x_scale is {self.x_scale!r}; scales must be positive and finite."
                )

    def scaled(self, x_scale: Any) -> "Options":
        """The options with other scales of the parameters."""
        return dataclasses.replace(self, x_scale=x_scale)


def filled(options: Options, n: int, dtype: Any = np.float64) -> Options:
    """The options with the defaults for n parameters of this dtype filled in."""
    precision = precision_of(dtype)
    numbers: dict[str, Any] = {
        "ftol": np.asarray(precision.ftol, dtype),
        "xtol": np.asarray(precision.xtol, dtype),
        "gtol": np.asarray(precision.gtol, dtype),
        "max_steps": max(1000, 100 * n),
    }
    missing = {k: v for k, v in numbers.items() if getattr(options, k) is None}
    return dataclasses.replace(options, **missing)


class Limits(NamedTuple):
    """The numbers of `Options`, with defaults filled in, as scalars of the fit."""

    ftol: Float[Array, ""]
    xtol: Float[Array, ""]
    gtol: Float[Array, ""]
    max_steps: Int[Array, ""]


def resolve(options: Options, n: int, dtype: Any) -> Limits:
    """Fill in the defaults for n parameters of this dtype."""
    options = filled(options, n, dtype)
    tolerances = options.ftol, options.xtol, options.gtol
    ftol, xtol, gtol = (jnp.asarray(value, dtype) for value in tolerances)
    return Limits(ftol, xtol, gtol, jnp.asarray(options.max_steps, jnp.int32))


DEFAULTS = Options()


def without_callable(options: Options) -> tuple[Options, Any]:
    """Options as numbers alone, and the way to the Jacobian."""
    if options.jac is None:
        return options, None
    return dataclasses.replace(options, jac=None), options.jac


def check_callable(fn: Any, name: str, expected: str) -> None:
    """Refuse what is no function."""
    if not callable(fn):
        raise TypeError(f"{name} is {fn!r}; expected {expected}.")


def check_arguments(loss: Any, options: Any, rows: Any) -> None:
    """Refuse arguments of the wrong class."""
    if not isinstance(options, Options):
        raise TypeError(f"options is {options!r}; expected jaxfit.Options(...).")
    check_loss(loss)
    if not (rows is None or isinstance(rows, (Whole, Chunked, Sharded))):
        raise TypeError(
            f"rows is {rows!r}; expected None, jaxfit.Whole(), jaxfit.Chunked(size) or "
            "jaxfit.Sharded(mesh, axis)."
        )


def check_known_scale(loss: Any, place: str) -> None:
    """Refuse a loss that is to find its scale."""
    if isinstance(loss, Loss) and isinstance(loss.scale, str):
        raise ValueError(
            f"loss is {type(loss).__name__}('auto'), and {place} needs a number for "
            "the scale. Take that of a fit of some of the data: "
            "solve(..., loss=...).loss_scale."
        )


def check_loss(loss: Any) -> None:
    """Refuse what is no loss."""
    if not (loss is None or isinstance(loss, Loss | Likelihood)):
        raise TypeError(
            f"loss is {loss!r}; expected None, or an instance of a loss or a "
            "likelihood, such as jaxfit.losses.Huber(1.0) or jaxfit.losses.Poisson()."
        )
