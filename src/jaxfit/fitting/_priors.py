"""Priors: what is known of parameters besides the data, as further residuals.

A normal prior of k parameters with mean m and covariance C = L Lᵀ adds the k residuals
L⁻¹ (p - m). With L lower triangular, row i of them is what is known of parameter i once
those before it are: so a prior of a shared parameter and one that each of many data
sets has by itself is a row that counts once, and one for each data set.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from jaxfit._scipy.arguments import real_array

Numeric = Array | np.ndarray
SYMMETRIC = 1e-9  # relative to the deviations: how much a covariance may be unlike Cᵀ


class Prior(eqx.Module):
    """A normal prior of one parameter or of several together; a pytree.

    Attributes:
        names: the parameters.
        mean: theirs, (k,).
        factor: the lower Cholesky factor of their covariance, (k, k): of one parameter
            the standard deviation.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    mean: Float[Numeric, " k"]
    factor: Float[Numeric, "k k"]

    def residuals(self, parameters: Mapping[str, Any]) -> list[Any]:
        """L⁻¹ (p - mean), by forward substitution: numbers, in the order of names."""
        rows: list[Any] = []
        for k, name in enumerate(self.names):
            rest = parameters[name] - self.mean[k]
            for j, row in enumerate(rows):
                rest = rest - self.factor[k, j] * row
            rows.append(rest / self.factor[k, k])
        return rows

    def with_first(self, names: Sequence[str]) -> "Prior":
        """The same prior with some of its names before the others."""
        order = sorted(range(len(self.names)), key=lambda k: self.names[k] not in names)
        if order == [*range(len(self.names))]:
            return self
        covariance = self.factor @ self.factor.T
        return Prior(
            names=tuple(self.names[k] for k in order),
            mean=self.mean[order],
            factor=np.linalg.cholesky(covariance[np.ix_(order, order)]),
        )

    @property
    def words(self) -> str:
        """The prior for people."""
        deviations = np.sqrt(np.sum(np.asarray(self.factor) ** 2, axis=1))
        each = ", ".join(
            f"{name} = {mean:.6g} ± {deviation:.2g}"
            for name, mean, deviation in zip(
                self.names, self.mean, deviations, strict=True
            )
        )
        return f"{each} (with a covariance)" if len(self.names) > 1 else each


def names_of_rows(priors: Iterable[Prior]) -> list[str]:
    """The parameter that each residual of some priors is about, given those before."""
    return [name for prior in priors for name in prior.names]


def words_of(priors: Sequence[Prior]) -> list[str]:
    """What a reader of a report should know of them, as sentences."""
    if not priors:
        return []
    what = "Prior" if len(priors) == 1 else "Priors"
    return [f"{what}: {'; '.join(prior.words for prior in priors)}."]


def priors_from(names: Sequence[str], prior: Any) -> tuple[Prior, ...]:
    """The priors, from the argument of `fit`, checked.

    Args:
        names: all parameters.
        prior: by name (mean, standard deviation), by a tuple of names (means,
            covariance).
    """
    if prior is None:
        return ()
    if not isinstance(prior, Mapping):
        raise TypeError(
            f"prior is {prior!r}; give a dictionary by name: {', '.join(names)}."
        )
    priors = [_prior(key, pair) for key, pair in prior.items()]
    seen: set[str] = set()
    for name in names_of_rows(priors):
        if name not in names:
            raise ValueError(
                f"prior names {name!r}; the parameters are {', '.join(names)}."
            )
        if name in seen:
            raise ValueError(
                f"prior names {name!r} twice. Give each parameter one prior, alone or "
                "with others in one tuple of names."
            )
        seen.add(name)
    return tuple(sorted(priors, key=lambda one: one.names))


def _prior(key: Any, pair: Any) -> Prior:
    if isinstance(key, tuple) and key and all(isinstance(name, str) for name in key):
        return _of_several(key, pair)
    if not isinstance(key, str):
        raise TypeError(
            f"prior has the key {key!r}; give the name of a parameter, or a tuple of "
            "names for a prior with a covariance."
        )
    return _of_one(key, pair)


def _of_one(name: str, pair: Any) -> Prior:
    try:
        mean, deviation = (real_array(value, "it").reshape(()) for value in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"prior[{name!r}] is {pair!r}; give a pair (mean, standard deviation)."
        ) from error
    if not (np.isfinite(mean) and 0 < deviation < np.inf):
        raise ValueError(
            f"prior[{name!r}] is {pair!r}; the mean must be finite and the standard "
            "deviation positive."
        )
    return Prior((name,), mean.reshape(1), deviation.reshape(1, 1))


def _of_several(names: tuple[str, ...], pair: Any) -> Prior:
    number = len(names)
    try:
        mean, covariance = (real_array(value, "it") for value in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"prior[{names!r}] is {pair!r}; give a pair (means, covariance matrix)."
        ) from error
    if mean.shape != (number,) or covariance.shape != (number, number):
        raise ValueError(
            f"prior[{names!r}] has means of the shape {mean.shape} and a covariance of "
            f"{covariance.shape}; for {number} names give ({number},) and "
            f"({number}, {number})."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(
            f"prior[{names!r}] has numbers that are not finite. Leave out what nothing "
            "is known of."
        )
    return Prior(names, mean, _factor(names, covariance))


def _factor(
    names: tuple[str, ...], covariance: Float[np.ndarray, "k k"]
) -> Float[np.ndarray, "k k"]:
    """The Cholesky factor of a covariance, computed of the correlation: no units."""
    variances = np.diagonal(covariance)
    if not (variances > 0).all():
        raise ValueError(
            f"prior[{names!r}] has the variances {variances.tolist()} on the diagonal "
            "of its covariance; they must be positive."
        )
    deviations = np.sqrt(variances)
    correlation = covariance / np.outer(deviations, deviations)
    if np.max(np.abs(correlation - correlation.T)) > SYMMETRIC:
        raise ValueError(
            f"prior[{names!r}] has a covariance that is not symmetric; give C with "
            "C[i, j] = C[j, i]."
        )
    try:
        return deviations[:, None] * np.linalg.cholesky(correlation)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"prior[{names!r}] has a covariance that is not positive definite: of some "
            "combination of these parameters it says more than there is to know. "
            "Correlations must be those of a sample, and below 1 in size."
        ) from error


def expanded(prior: Any, names_of: Any, number: int) -> Any:
    """Priors by name where some names stand for as many as there are data sets.

    Args:
        prior: the argument of `fit`.
        names_of: from a name to the names that it stands for.
        number: of data sets.
    """
    if not isinstance(prior, Mapping):
        return prior
    whole: dict[Any, Any] = {}
    for key, pair in prior.items():
        if not isinstance(key, tuple):
            whole |= dict.fromkeys(names_of(key), pair)
            continue
        each = [names_of(name) for name in key]
        lengths = {len(names) for names in each}
        if len(lengths) > 1 and number > 1:
            raise ValueError(
                f"prior[{key!r}] names local parameters beside others that all data "
                "sets share. Write the names out, such as "
                f"{tuple(names[0] for names in each)}, in one prior."
            )
        whole |= {tuple(names): pair for names in zip(*each, strict=True)}
    return whole


def stored(priors: Iterable[Prior]) -> list[list[Any]]:
    """Priors as plain data."""
    return [
        [list(p.names), np.asarray(p.mean).tolist(), np.asarray(p.factor).tolist()]
        for p in priors
    ]


def restored(form: Any) -> tuple[Prior, ...]:
    """The priors of a file; older ones have (mean, deviation) by name."""
    if isinstance(form, Mapping):
        return priors_from([*form], form)
    return tuple(
        Prior(tuple(names), np.array(mean), np.array(factor))
        for names, mean, factor in form
    )
