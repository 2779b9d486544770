"""What a fit returns: the solution, its status, its certificate, its covariance."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PyTree

from jaxfit._core.certificate import Status
from jaxfit._core.covariance import Uncertainty, uncertainty
from jaxfit._programs.backend import is_eager_on_cpu
from jaxfit._programs.compiled import compiled
from jaxfit._programs.exportable import exportable
from jaxfit._rows.linearization import COUNT_BASE, Linearization

# of JAX, or of NumPy where a fit was done part by part
Numbers = jax.Array | np.ndarray

FEW = 4096  # fits whose errors are computed by a program that is compiled in haste


def at_once(method: Callable) -> Callable:
    """A method of a solution as one program where it is called eagerly on a CPU.

    One operation after the other compiles each, and a branch on every call.
    """

    def program(solution: "Solution", values: tuple, named: dict[str, Any]) -> Any:
        return method(solution, *values, **named)

    program.__name__ = method.__name__

    @functools.wraps(method)
    def called(self: "Solution", *values: Any, **named: Any) -> Any:
        if not is_eager_on_cpu((self, values, named)):
            return method(self, *values, **named)
        is_hasty = jnp.size(self.status) <= FEW
        return compiled(program, self, values, named, is_hasty=is_hasty)

    return called


@exportable
class Solution(eqx.Module):
    """The result of a fit: a pytree of arrays.

    `success` is a certificate, taken from quantities at the returned point: everything
    is finite, x lies inside its bounds, the cost is not above the start's, some
    residual has influence, and either

        max_i D_i |P(x_i - g_i / D_i²) - x_i|  <=  τ |r| + 8 ε sum_k D_k |x_k|

    with D_i = |J_i| the norms of the Jacobian's columns, g the gradient, P the
    projection on the bounds, and τ = 1e-6 in float64, 1e-3 in float32, or the cost is
    below ε^1.5 of the start's (a problem without residuals). With a likelihood J and r
    are those of its rows (`_rows/predictions.py`), and |r|² is increased by one, the
    unit of a deviance, in place of the second alternative; it counts for no more than
    the number of rows and the deviance.

    On a kink (`Status.KINK`) g is the least-norm element of the hull of the gradients
    sampled about x: see `kink.py`. The gradient of such a solution is that element, and
    its Jacobian that along the kink.

    Attributes:
        x: the parameters, in the structure of `x0`.
        status: a number of `Status`.
        optimality: the cosine that `gtol` tests.
        steps: accepted steps.
        nfev: evaluations of the residuals.
        linearization: the problem at x, as n x n numbers.
        loss_scale: of a loss with the scale "auto", what was found; else None.
    """

    x: PyTree[Float[Numbers, "..."]]
    status: Int[Numbers, "*batch"]
    optimality: Float[Numbers, "*batch"]
    steps: Int[Numbers, "*batch"]
    nfev: Int[Numbers, "*batch"]
    linearization: Linearization
    bounds_active: Int[Numbers, "*batch n"] | None  # None: a fit without bounds
    bounds_free: Bool[Numbers, "*batch n"] | None
    loss_scale: Float[Numbers, "*batch"] | None = eqx.field(kw_only=True, default=None)

    @property
    def cost(self) -> Float[Numbers, "*batch"]:
        """Half the sum of the loss; infinite if the start could not be evaluated."""
        return self._each(lambda lin: lin.cost, self.linearization)

    @property
    def count(self) -> Any:
        """Residuals that count: complex ones twice, those of weight zero not.

        An exact number, of 64 bits; in a trace without x64 of 32 bits at most.
        """
        words = self.linearization.counted
        if not isinstance(words, Tracer):
            words = np.asarray(words).astype(np.int64)
        else:
            words = words.astype(int)
        if words.dtype == np.int32:
            most = np.array(divmod(2**31 - 1, COUNT_BASE), np.int32)
            words = jnp.where(words[..., :1] > most[0], most, words)
        return words[..., 0] * COUNT_BASE + words[..., 1]

    @property
    def njev(self) -> Int[Numbers, "*batch"]:
        """Evaluations of the Jacobian: one with every evaluation of the residuals."""
        return self.nfev

    @property
    def gradient(self) -> PyTree[Float[Numbers, "..."]]:
        """The gradient of the cost, in the structure of `x0`."""
        return self._like_x(self._each(lambda lin: lin.gradient, self.linearization))

    @property
    def active(self) -> PyTree[Int[Numbers, "..."]]:
        """For each parameter -1 at its lower bound, 1 at its upper bound, else 0."""
        active = self.bounds_active
        if active is None:
            active = jnp.zeros(self._shape, jnp.int32)
        return self._like_x(active)

    @property
    def free(self) -> Bool[Numbers, "*batch n"]:
        """Parameters whose bounds differ, in `ravel` order."""
        if self.bounds_free is None:
            return jnp.ones(self._shape, bool)
        return self.bounds_free

    @property
    def success(self) -> Bool[Numbers, "*batch"]:
        """Whether the fit ended well, `status > 0`: a certificate, see `Solution`."""
        return self.status > 0

    @property
    def message(self) -> Any:
        """How the fit ended, as a sentence; an array of sentences for a batch."""
        if isinstance(self.status, Tracer):
            raise TypeError("Solution.message is for the host: read it outside of jit.")
        is_likelihood = self.linearization.is_likelihood

        def sentence(status: int) -> str:
            kind = Status(status)
            return kind.message_of_likelihood if is_likelihood else kind.message

        status = np.asarray(self.status)
        messages = np.vectorize(sentence, otypes=[object])(status)
        return messages.item() if messages.ndim == 0 else messages

    @at_once
    def covariance(self, absolute: ArrayLike = False) -> Float[Numbers, "*batch n n"]:
        """Covariance of the parameters in `ravel` order.

        The inverse of JᵀJ over the free parameters, times the variance of a residual.

        Args:
            absolute: the weights are 1/sigma² of known errors: that variance is 1.
                Otherwise it is estimated, 2 cost / (count - free), and infinite if no
                degree of freedom is left.

        Returns:
            (n, n), with leading axes for a batch. A fixed parameter has zero rows. A
            direction that the data do not determine makes the variance of every
            parameter that takes part in it infinite, and what stands beside it NaN; so
            does a kink for what it holds.
        """
        return self.uncertainty(absolute).covariance

    @at_once
    def determined(self) -> PyTree[Bool[Numbers, "..."]]:
        """Which parameters the data determine, in the structure of `x`.

        By the rank of JᵀJ, its columns scaled to one, and not by the number of points:
        a determined parameter may still be without an error, where no degree of freedom
        is left. A fixed parameter is determined.
        """
        return self._like_x(self.uncertainty().determined)

    @at_once
    def uncertainty(self, absolute: ArrayLike = False) -> Uncertainty:
        """`covariance` and `determined` at once, both in `ravel` order."""
        of_one = functools.partial(uncertainty, absolute=absolute)
        unknown = self._each(of_one, self.linearization, self.free)
        on_kink = (self.status == jnp.int32(Status.KINK))[..., None]
        return unknown._replace(determined=unknown.determined | on_kink)

    @at_once
    def stderr(self, absolute: ArrayLike = False) -> PyTree[Float[Numbers, "..."]]:
        """Standard errors in the structure of `x`; see `covariance`."""
        return self._like_x(standard_errors(self.covariance(absolute)))

    @at_once
    def correlation(self) -> Float[Numbers, "*batch n n"]:
        """Correlation of the parameters; NaN where a variance is zero or infinite."""
        covariance = self.covariance()
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        proper = (variance > 0) & jnp.isfinite(variance)
        root = jnp.sqrt(jnp.where(proper, variance, jnp.nan))
        correlation = covariance / (root[..., :, None] * root[..., None, :])
        diagonal = jnp.eye(variance.shape[-1], dtype=bool) & proper[..., None]
        return jnp.where(diagonal, 1, jnp.clip(correlation, -1, 1))

    def summary(self, worst: int = 5) -> str:
        """A batch in a few lines, for people: how its fits ended and what they took.

        Counts by status, evaluations, and the fits that are furthest from their
        solution, by index.

        Args:
            worst: how many of these to name.
        """
        status, nfev = np.ravel(self.status), np.ravel(self.nfev)
        lines = [f"{status.size} fits"]
        for value, number in zip(*np.unique(status, return_counts=True), strict=True):
            name = Status(value).name
            lines.append(f"  {name:<16}{number:>10}{number / status.size:>9.2%}")
        if status.size == 0:
            return lines[0]
        middle, high = np.quantile(nfev, [0.5, 0.99])
        lines.append(f"evaluations: median {middle:.0f}, 99 % at most {high:.0f}")
        badness = np.where(status > 0, 0, 1) + np.nan_to_num(
            np.minimum(np.ravel(self.optimality), 1), nan=1
        )
        order = np.argsort(-badness, kind="stable")[:worst]
        lines += [
            f"  fit {i}: {Status(status[i]).name}, optimality "
            f"{np.ravel(self.optimality)[i]:.1e}, {nfev[i]} evaluations"
            for i in order
        ]
        return "\n".join(lines)

    @property
    def _shape(self) -> tuple[int, ...]:
        """(*batch, n)."""
        return self.linearization.frame.shape[:-1]

    def _each(self, fn: Callable, *arguments: PyTree) -> Any:
        """A function of one fit, for all of them."""
        for _ in self.status.shape:
            fn = jax.vmap(fn)
        return fn(*arguments)

    def _like_x(self, vector: Numbers) -> PyTree:
        """Split (..., n) into the structure and shapes of `x`."""
        return split_like(self.x, vector, self.status.shape)


def standard_errors(covariance: Float[Numbers, "*many n n"]) -> Float[Numbers, "..."]:
    """The roots of the variances."""
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    # the root of zero or infinity has no derivative, and the first is none either
    proper = (variance > 0) & jnp.isfinite(variance)
    root = jnp.sqrt(jnp.where(proper, variance, 1))
    improper = jnp.sqrt(jax.lax.stop_gradient(variance))
    return jnp.where(proper, root, improper)


def split_like(tree: PyTree, vectors: Numbers, lead: tuple[int, ...]) -> PyTree:
    """Split (*lead, n) into the structure and shapes of a tree with these axes."""
    leaves, structure = jax.tree.flatten(tree)
    parts, start = [], 0
    for leaf in leaves:
        shape = leaf.shape[len(lead) :]
        size = math.prod(shape)
        parts.append(vectors[..., start : start + size].reshape(lead + shape))
        start += size
    return jax.tree.unflatten(structure, parts)
