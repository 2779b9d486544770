"""What a function predicts of observed numbers, as rows of a likelihood.

A row enters the linearization as r = slope / √h and J = √h ∂mean/∂x, with h the
expected curvature of its cost: generalised Gauss-Newton, which is Fisher scoring
(McCullagh and Nelder, Generalized Linear Models, 2nd ed., 1989, section 2.5).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxfit._rows.linearization import Kind
from jaxfit.losses import Likelihood, LikelihoodTerms, Linear, Loss, Prediction
from jaxfit.losses._likelihood import Most


def kind_of(loss: Loss | Likelihood | None) -> Kind:
    """What the cost of a fit is made of."""
    if isinstance(loss, Likelihood):
        return Kind.LIKELIHOOD if loss.has_unit else Kind.PLAIN
    return Kind.SQUARES if loss is None or type(loss) is Linear else Kind.ROBUST


def rows_of_loss(loss: Loss | Likelihood, values: Any) -> tuple:
    """A loss as a function of rows, and such arguments as it takes."""
    arguments = 2 if isinstance(loss, Likelihood) else 1
    return loss.evaluate, *[values] * arguments


def is_prediction(node: Any) -> bool:
    """Whether a node of what a function returned is a `Prediction`."""
    return isinstance(node, Prediction)


def means_of(output: PyTree) -> PyTree:
    """What a function returned, with each `Prediction` replaced by its mean."""
    return jax.tree.map(
        lambda node: node.mean if is_prediction(node) else node,
        output,
        is_leaf=is_prediction,
    )


class Group(NamedTuple):
    """What stands beside the means of one `Prediction`."""

    observed: Float[Array, " k"]
    likelihood: Likelihood | None  # with numbers, or one for each row; None: residuals

    def cost(self, mean: Float[Array, " k"]) -> Float[Array, " k"]:
        """The cost of each row."""
        if self.likelihood is None:
            return 0.5 * (mean - self.observed) ** 2
        return self.likelihood.cost(mean, self.observed)

    def terms(self, mean: Float[Array, " k"], most: Most) -> LikelihoodTerms:
        """Cost, residual and root of each row."""
        if self.likelihood is not None:
            return self.likelihood.evaluate(mean, self.observed, most)
        residual = mean - self.observed
        return LikelihoodTerms(0.5 * residual**2, residual, jnp.ones_like(mean))


class Groups(NamedTuple):
    """What stands beside the means of all rows, in their order."""

    parts: list[Group]

    def terms(self, means: Float[Array, " m"], most: Most) -> LikelihoodTerms:
        """Cost, residual and root of each row; see `Frame`."""
        terms = [part.terms(mean, most) for part, mean in self._with(means)]
        if len(terms) == 1:
            return terms[0]
        limited = [
            jnp.zeros(part.cost.shape, bool) if part.limited is None else part.limited
            for part in terms
        ]
        return LikelihoodTerms(
            cost=_joined([part.cost for part in terms]),
            residual=_joined([part.residual for part in terms]),
            root=_joined([part.root for part in terms]),
            limited=_joined(limited),
        )

    def costs(
        self, means: Float[Array, " m"], counts: Bool[Array, " m"] | None
    ) -> Float[Array, " m"]:
        """The cost of each row; 0, with all derivatives, of those that do not count."""
        if counts is None:
            return _joined([part.cost(mean) for part, mean in self._with(means)])
        observed = jnp.where(counts, _joined([p.observed for p in self.parts]), 1)
        means = jnp.where(counts, means, 1)  # whose derivatives may be NaN
        ends = np.cumsum([len(part.observed) for part in self.parts])[:-1]
        proper = [
            part._replace(observed=values)
            for part, values in zip(self.parts, jnp.split(observed, ends), strict=True)
        ]
        return jnp.where(counts, Groups(proper).costs(means, None), 0)

    def _with(
        self, means: Float[Array, " m"]
    ) -> Iterator[tuple[Group, Float[Array, " k"]]]:
        ends = np.cumsum([len(part.observed) for part in self.parts])
        for part, end in zip(self.parts, ends, strict=True):
            yield part, means[end - len(part.observed) : end]


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def grouped(
    output: PyTree, loss: Loss | Likelihood | None, rows: Callable[[Any], Array]
) -> Groups | None:
    """What stands beside the means of what a function returned; None: residuals.

    Args:
        output: with a `Prediction` in the place of residuals, or beside them.
        loss: of the fit.
        rows: what makes a vector of the fit's dtype of one array.
    """
    leaves = jax.tree.leaves(output, is_leaf=is_prediction)
    if not isinstance(loss, Likelihood):
        if any(map(is_prediction, leaves)):
            raise TypeError(
                f"fn returned a Prediction, and loss is {loss!r}. Say by which "
                "likelihood observed numbers are to be judged, such as "
                "loss=jaxfit.losses.Poisson()."
            )
        return None
    if not any(map(is_prediction, leaves)):
        raise TypeError(
            f"loss is {loss!r}, a likelihood, and fn returned no Prediction. Return "
            "jaxfit.Prediction(mean, observed) in place of residuals."
        )
    return Groups([_group(leaf, loss, rows) for leaf in leaves])


def _group(leaf: Any, loss: Likelihood, rows: Callable[[Any], Array]) -> Group:
    if not is_prediction(leaf):
        return Group(jnp.zeros_like(rows(leaf)), None)
    mean, observed = jnp.shape(leaf.mean), jnp.shape(leaf.observed)
    likelihood = loss if leaf.likelihood is None else leaf.likelihood

    def for_each_row(number: Any) -> Array:
        number = jnp.asarray(number)
        if number.ndim == 0:
            return number
        try:
            return rows(_floating(jnp.broadcast_to(number, mean), leaf.mean))
        except ValueError as error:
            raise ValueError(
                f"{type(likelihood).__name__} has numbers of the shape {number.shape}, "
                f"and the mean has {mean}: they must broadcast to it."
            ) from error

    if not _broadcasts(observed, mean):
        raise ValueError(
            f"A Prediction has a mean of the shape {mean} and observed numbers of the "
            f"shape {observed}; give one mean for each observed number."
        )
    for name, value in (("mean", leaf.mean), ("observed", leaf.observed)):
        if jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
            raise TypeError(f"The {name} of a Prediction is complex; give real ones.")
    return Group(
        observed=rows(_floating(jnp.broadcast_to(leaf.observed, mean), leaf.mean)),
        likelihood=jax.tree.map(for_each_row, likelihood),
    )


def _floating(values: Array, mean: Any) -> Array:
    """Whole numbers as floating ones, of the mean's dtype."""
    is_floating = jnp.issubdtype(values.dtype, jnp.floating)
    return values if is_floating else values.astype(jnp.result_type(mean))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether arrays of the one shape broadcast to the other."""
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


# Numbers of a likelihood, one for each row


class Assigned(eqx.Module):
    """A function whose data bring the numbers of a likelihood, one for each row."""

    function: Any
    likelihood: Likelihood  # None where the data have a number

    def __call__(self, *arguments: Any) -> PyTree:
        *points, (data, numbers) = arguments
        likelihood = eqx.combine(self.likelihood, numbers)

        def assigned(node: Any) -> Any:
            if not is_prediction(node) or node.likelihood is not None:
                return node
            return Prediction(node.mean, node.observed, likelihood)

        output = self.function(*points, data)
        return jax.tree.map(assigned, output, is_leaf=is_prediction)


class WithoutNumbers(eqx.Module):
    """A function of data that do without such numbers."""

    function: Any

    def __call__(self, *arguments: Any) -> PyTree:
        *points, (data, _) = arguments
        return self.function(*points, data)


class RowNumbers(NamedTuple):
    """A likelihood with a number for each row, apart: a row of data brings its own."""

    likelihood: Likelihood  # None where there is a number for each row
    numbers: Likelihood  # these

    @classmethod
    def of(cls, loss: Loss | Likelihood | None) -> "RowNumbers | None":
        """Those of a loss; None: it has none."""
        if not isinstance(loss, Likelihood):
            return None
        numbers, rest = eqx.partition(loss, lambda leaf: np.ndim(leaf) > 0)
        return cls(rest, numbers) if jax.tree.leaves(numbers) else None

    @property
    def loss(self) -> Likelihood:
        """A likelihood of the same kind."""
        return eqx.combine(self.likelihood, jax.tree.map(lambda _: 1.0, self.numbers))

    def given_to(self, function: Any) -> Any:
        """A function whose data bring the numbers, where it returns a `Prediction`."""
        return Assigned(function, self.likelihood)

    def kept_from(self, jacobian: Any) -> Any:
        """A Jacobian of these data, if it is a function."""
        return WithoutNumbers(jacobian) if callable(jacobian) else jacobian


def with_numbers(likelihood: Likelihood, numbers: Any) -> Likelihood:
    """A likelihood with a number for each row, where it lacks one."""
    if numbers is None:
        return likelihood
    return jax.tree.map(
        lambda leaf: numbers if leaf is None else leaf,
        likelihood,
        is_leaf=lambda leaf: leaf is None,
    )


def check_no_row_numbers(loss: Loss | Likelihood | None) -> None:
    """Refuse a likelihood with a number for each row, where blocks of rows are read."""
    found = RowNumbers.of(loss)
    if found is not None:
        raise ValueError(
            f"loss is {loss!r}, with a number for each row, and rows are read block by "
            "block. Let them come with the data, as in Prediction(mean, observed, "
            f"{type(loss).__name__}(data[...])), and give loss one number."
        )
