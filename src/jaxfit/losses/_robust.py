"""Robust losses: what a residual costs, as a function of z = (residual / scale)².

The cost of a fit is half the sum of scale² ρ(z). Every loss has ρ(z) ~ z for small z,
so that inliers are fitted by plain least squares, and grows more slowly beyond the
scale, so that outliers lose their pull. The definitions are those of
`scipy.optimize.least_squares`; Tukey's biweight is that of Beaton and Tukey
(Technometrics 16, 1974).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

Elements = Float[Array, "*shape"]


class Loss(eqx.Module):
    """A robust loss. Subclass it and define `rho` to make your own.

    Attributes:
        tuning: the scale in standard deviations of normal errors at which the loss is
            95 % efficient for these; of a loss that can find its scale.

    Args:
        scale: the residual, in the units of the (weighted) residuals, at which the
            loss leaves plain least squares. A positive scalar; it is traced, so that
            another scale does not compile again. Or "auto" for Huber's and Tukey's: the
            scale is found from the residuals.
    """

    scale: Any = 1.0  # judged below, with words
    tuning: ClassVar[float] = 0.0

    def __check_init__(self) -> None:
        if isinstance(self.scale, Tracer):
            return
        if isinstance(self.scale, str) and self.scale == "auto" and self.tuning:
            return
        scale = np.asarray(self.scale)
        if scale.ndim or scale.dtype.kind not in "iuf" or not 0 < scale < np.inf:
            raise ValueError(
                f"{type(self).__name__}: scale is {self.scale!r}; give one positive "
                "finite number, the residual beyond which a point is an outlier"
                f"{', or auto' if self.tuning else ''}."
            )

    def rho(self, z: Elements) -> Elements:
        """ρ(z), elementwise; ρ(0) = 0 and ρ'(0) = 1 by convention."""
        raise NotImplementedError(
            f"{type(self).__name__} must define rho(self, z), elementwise in z."
        )

    def evaluate(self, z: Elements) -> tuple[Elements, Elements, Elements]:
        """ρ(z), ρ'(z) and ρ''(z). By default the derivatives of `rho` are taken."""
        ones = jnp.ones_like(z)

        def with_slope(z: Elements) -> tuple[Elements, Elements]:
            return jax.jvp(self.rho, (z,), (ones,))

        (rho, slope), (_, curvature) = jax.jvp(with_slope, (z,), (ones,))
        return rho, slope, curvature


class Linear(Loss):
    """Plain least squares, ρ(z) = z: the efficient choice for Gaussian errors."""

    def rho(self, z: Elements) -> Elements:
        return z

    def evaluate(self, z: Elements) -> tuple[Elements, Elements, Elements]:
        return z, jnp.ones_like(z), jnp.zeros_like(z)


class Huber(Loss):
    """ρ(z) = z up to 1 and 2√z - 1 beyond: quadratic, then linear, still convex.

    `Huber("auto")` finds its scale: parameters and the standard deviation s of the
    errors are minimised together in Huber's convex form, and the scale is 1.345 s (see
    `_core/auto_scale.py`).
    """

    tuning: ClassVar[float] = 1.345

    def rho(self, z: Elements) -> Elements:
        return self.evaluate(z)[0]

    def evaluate(self, z: Elements) -> tuple[Elements, Elements, Elements]:
        inlier = z <= 1
        root = jnp.sqrt(jnp.where(inlier, 1, z))
        return (
            jnp.where(inlier, z, 2 * root - 1),
            1 / root,
            jnp.where(inlier, 0, -0.5 / root**3),
        )


class SoftL1(Loss):
    """ρ(z) = 2(√(1 + z) - 1): a smooth Huber."""

    def rho(self, z: Elements) -> Elements:
        return self.evaluate(z)[0]

    def evaluate(self, z: Elements) -> tuple[Elements, Elements, Elements]:
        root = jnp.sqrt(1 + z)
        # 2(root - 1), written without cancellation at small z
        return 2 * z / (1 + root), 1 / root, -0.5 / root**3


class Cauchy(Loss):
    """ρ(z) = log(1 + z): outliers lose almost all weight; not convex."""

    def rho(self, z: Elements) -> Elements:
        return jnp.log1p(z)

    def evaluate(self, z: Elements) -> tuple[Elements, Elements, Elements]:
        slope = 1 / (1 + z)
        return jnp.log1p(z), slope, -(slope**2)


class Arctan(Loss):
    """ρ(z) = arctan(z): the cost of a single residual is bounded; not convex."""

    def rho(self, z: Elements) -> Elements:
        return jnp.arctan(z)

    def evaluate(self, z: Elements) -> tuple[Elements, Elements, Elements]:
        slope = 1 / (1 + z**2)
        return jnp.arctan(z), slope, -2 * z * slope**2


class Tukey(Loss):
    """ρ(z) = (1 - (1 - z)³)/3 up to 1, then 1/3: residuals beyond count for nothing.

    `Tukey("auto")` starts where `Huber("auto")` ends, and has 4.685 s for its scale.
    """

    tuning: ClassVar[float] = 4.685

    def rho(self, z: Elements) -> Elements:
        return self.evaluate(z)[0]

    def evaluate(self, z: Elements) -> tuple[Elements, Elements, Elements]:
        z = jnp.minimum(z, 1)
        # (1 - (1 - z)³)/3, written without cancellation at small z
        return z * (1 - z + z**2 / 3), (1 - z) ** 2, -2 * (1 - z)
