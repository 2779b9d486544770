"""Shared parameters beside many that each data set has by itself: when they are biased.

Maximum likelihood of what is shared is biased, and not consistent, where each data set
has parameters of its own that few observations determine: these are fitted to the noise
too, and their number grows with that of the data (Neyman and Scott, Econometrica 16,
1948). Where they enter linearly in least squares the degrees of freedom make up for it.
"""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxfit._joint.affine import is_affine
from jaxfit._programs.host import double_precision
from jaxfit.fitting._fitted import listed
from jaxfit.fitting._points import DataSet
from jaxfit.fitting._problem import Method, Numeric, Problem, traced_function
from jaxfit.losses import Likelihood

MANY = 30  # data sets, and their parameters likewise
ENOUGH = 10  # observations of each of these


class IncidentalParametersWarning(UserWarning):
    """What data sets share may be biased: each has too few observations of its own."""


class Incidental(NamedTuple):
    """The parameters of a joint fit, and what they are found from."""

    shared: tuple[str, ...]
    local: tuple[str, ...]
    number: int  # of data sets
    observations: float  # of each, on average

    @property
    def is_doubtful(self) -> bool:
        """Whether a bias is to be feared."""
        return self.number > MANY and self.observations < ENOUGH * len(self.local)

    @property
    def words(self) -> str:
        """What is wrong, and what to do."""
        for_each = self.observations / len(self.local)
        return (
            f"{self.number} data sets share {listed(list(self.shared))}, and each has "
            f"{listed(list(self.local))} by itself, which enter nonlinearly, from "
            f"{self.observations:.3g} observations: {for_each:.2g} for each. The "
            "maximum likelihood of what is shared is then biased, however many data "
            "sets there are (Neyman and Scott, Econometrica 16, 1948). Share, fix or "
            "tie some of them, give them priors, or take more observations of each; "
            "fits to data simulated from this one tell how large the bias is."
        )


def warn_of_incidental_parameters(
    problem: Problem, data_sets: DataSet, method: Method, shared: tuple[str, ...]
) -> None:
    """Warn where a likelihood meets many nonlinear parameters of single data sets.

    Args:
        data_sets: with a leading axis.
        shared: the parameters that they share.
    """
    if not isinstance(method.loss, Likelihood):
        return
    local = tuple(name for name in problem.varied if name not in shared)
    y, valid = data_sets.data.y, data_sets.valid
    observed = np.ones(np.shape(y), bool) if valid is None else np.asarray(valid) > 0
    of_each = observed.reshape(len(observed), -1).sum(axis=1)
    counted = of_each[of_each > 0]
    found = Incidental(
        shared=shared,
        local=local,
        number=len(counted),
        observations=float(counted.mean()) if len(counted) else 0.0,
    )
    if found.is_doubtful and not _enter_linearly(problem, data_sets, local):
        warnings.warn(found.words, IncidentalParametersWarning, stacklevel=2)


def _enter_linearly(problem: Problem, data_sets: DataSet, local: Any) -> bool:
    """Whether the mean is affine in the local parameters."""
    first = data_sets.data.y[0]
    shared = [name for name in problem.varied if name not in local]

    def mean(u: Float[Array, " l"]) -> Float[Numeric, "..."]:
        others = dict.fromkeys(shared, jnp.ones((), u.dtype))
        values = others | dict(zip(local, u, strict=True))
        return problem.values(values, data_sets.data.x, first.shape)

    with double_precision(traced_function(problem.model)):
        return is_affine(mean, jnp.ones(len(local)))
