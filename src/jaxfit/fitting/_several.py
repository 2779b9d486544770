"""Several data sets in one fit: parameters that all share, and some of each one's own.

To the solver they are one data set, whose x is a tuple of theirs and whose y is one
vector; `Several` is the model of it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from jaxfit._numpy.either import Values, xp
from jaxfit._scipy.observations import Points
from jaxfit.fitting._dates import Dated
from jaxfit.fitting._points import Observed, observed, parted
from jaxfit.fitting._priors import expanded
from jaxfit.fitting._record import Record
from jaxfit.models import Model
from jaxfit.models._guess import start_from
from jaxfit.models._model import Interval, Params

MOST_GUESSES = 5  # data sets whose guess may be that of what all share

Shape = tuple[int, ...]


class Several(Model):
    """One model of several data sets.

    Args:
        base: the model of each.
        local: names of the parameters that each has by itself: `height_1`, `height_2`.
        shapes: those of the data sets.
    """

    base: Model
    local: tuple[str, ...] = eqx.field(static=True)
    shapes: tuple[Shape, ...] = eqx.field(static=True)

    @property
    def own_names(self) -> tuple[str, ...]:
        return tuple(n for name in self.base.names for n in self.names_of(name))

    @property
    def bounds(self) -> dict[str, Interval]:
        limits = self.base.bounds
        return {n: limits[name] for name in limits for n in self.names_of(name)}

    @property
    def label(self) -> str:
        return f"{self.base.label}, {len(self.shapes)} data sets"

    @property
    def plain(self) -> Any:
        """What an error about tracing should name."""
        return getattr(self.base, "plain", self.base)

    @property
    def starts_from_data(self) -> bool:
        return False  # not from data as one vector

    @property
    def starts_in_numpy(self) -> bool:
        return self.base.starts_in_numpy

    @property
    def is_pointwise(self) -> bool:
        return False

    def names_of(self, name: str) -> list[str]:
        """The names of a parameter of the base in all data sets."""
        if name not in self.local:
            return [name]
        return [f"{name}_{k + 1}" for k in range(len(self.shapes))]

    def of(self, k: int, parameters: Params) -> dict[str, Any]:
        """The parameters of one data set, or which of them there are."""
        own = {name: self.names_of(name) for name in self.base.names}
        chosen = {name: n[k if name in self.local else 0] for name, n in own.items()}
        return {n: parameters[key] for n, key in chosen.items() if key in parameters}

    def evaluate(self, x: PyTree, parameters: Params) -> Any:
        values = []
        for k, shape in enumerate(self.shapes):
            part = xp.asarray(self.base.evaluate(x[k], self.of(k, parameters)))
            if np.broadcast_shapes(part.shape, shape) != shape:
                raise ValueError(
                    f"The model {self.base.label} has values of the shape {part.shape} "
                    f"for data set {k + 1}, whose y has {shape}."
                )
            values.append(xp.ravel(xp.broadcast_to(part, shape)))
        return xp.concatenate(values)

    def derived(self, parameters: Params, origin: Any = None) -> dict[str, Any]:
        if not self.local:
            return self.base.derived(parameters)
        return {
            f"{name}_{k + 1}": value
            for k in range(len(self.shapes))
            for name, value in self.base.derived(self.of(k, parameters)).items()
        }

    def guessed_start(self, x: PyTree, y: Values, known: Params) -> dict[str, Any]:
        """What all share from one data set, that which then fits all of them best."""
        data = parted(y, self.shapes)
        order = sorted(range(len(data)), key=lambda k: -math.prod(self.shapes[k]))

        def guess(k: int, also: Params) -> dict[str, Any]:
            of_one = self.of(k, {**known, **also})
            return start_from(self.base, x[k], data[k], xp.isfinite(data[k]), of_one)

        starts = []
        for k in order[:MOST_GUESSES]:
            first = guess(k, {})
            shared = {name: first[name] for name in first if name not in self.local}
            start = dict(shared)
            for j in range(len(data)) if self.local else ():
                own = guess(j, shared)
                start |= {f"{name}_{j + 1}": own[name] for name in self.local}
            starts.append({name: start[name] for name in self.names})
        costs = []
        for start in starts:
            rows = self.evaluate(x, start) - y
            costs.append(xp.sum(xp.where(xp.isfinite(rows), rows, 0) ** 2))
        costs = xp.stack(costs)
        best = xp.argmin(xp.where(xp.isfinite(costs), costs, np.inf))
        return {name: xp.stack([s[name] for s in starts])[best] for name in self.names}

    def expanded(self, values: Any) -> Any:
        """Settings by name, those of a local parameter for each of its names."""
        if isinstance(values, str):
            values = [values]
        if isinstance(values, Mapping):
            pairs = values.items()
            return {n: value for name, value in pairs for n in self.names_of(name)}
        if isinstance(values, (list, tuple, set)) and set(values) & set(self.local):
            return [n for name in values for n in self.names_of(name)]
        return values

    def expanded_prior(self, prior: Any) -> Any:
        """`expanded` of priors, whose names may stand in tuples."""
        return expanded(prior, self.names_of, len(self.shapes))


class OneOf(Model):
    """The model of one of several data sets, of the parameters of all."""

    part: Model
    several: Several
    k: int = eqx.field(static=True)

    @property
    def own_names(self) -> tuple[str, ...]:
        return self.several.own_names

    @property
    def label(self) -> str:
        return self.part.label

    @property
    def parts(self) -> tuple[Model, ...]:
        return tuple(OneOf(part, self.several, self.k) for part in self.part.parts)

    def evaluate(self, x: PyTree, parameters: Params) -> Any:
        return self.part.evaluate(x, self.several.of(self.k, parameters))


# From the arguments of `fit`


class SeveralData(NamedTuple):
    """x, y and sigma of several data sets, as `fit` was given them."""

    x: list[Any]
    y: list[Any]
    sigma: Any

    @classmethod
    def of(cls, x: Any, y: Any, sigma: Any) -> "SeveralData | None":
        """The data sets, if there are several: lists of arrays, or pairs (x, y)."""
        if y is None:
            if not (isinstance(x, list) and x and all(map(_is_pair, x))):
                raise TypeError(
                    "y is missing. Give fit(model, x, y), or a list of pairs (x, y) "
                    "for several data sets."
                )
            x, y = [pair[0] for pair in x], [pair[1] for pair in x]
        elif not (isinstance(x, list) and isinstance(y, (list, tuple))):
            return None
        elif len(y) < 2 or not _are_apart(y):
            return None
        elif len(x) != len(y):
            raise ValueError(f"x is a list of {len(x)} data sets, and y of {len(y)}.")
        return cls(list(x), list(y), sigma)

    @property
    def sigmas(self) -> list[Any]:
        """Standard errors of each."""
        sigma = self.sigma
        if not isinstance(sigma, (list, tuple)):
            if np.ndim(sigma):
                raise ValueError(
                    f"sigma has the shape {np.shape(sigma)}; for several data sets "
                    "give one number, or a list of what goes with each."
                )
            return [sigma] * len(self.y)
        if len(sigma) != len(self.y):
            raise ValueError(
                f"sigma is a list of {len(sigma)}; y is one of {len(self.y)}."
            )
        if any(one is None for one in sigma) and any(one is not None for one in sigma):
            raise ValueError(
                "sigma is None for some data sets. Give it for all: its ratios say how "
                "much they count beside each other."
            )
        return list(sigma)

    def seen(self, nan_policy: str) -> Observed:
        """All points as one vector."""
        each, dates = [], None
        for x, y, sigma in zip(self.x, self.y, self.sigmas, strict=True):
            dated = Dated.of(x, dates)
            dates = dated.dates
            one = observed(dated, y, sigma, nan_policy)
            if one.is_complex or one.is_correlated:
                what = "complex y" if one.is_complex else "a covariance matrix as sigma"
                raise ValueError(
                    f"Several data sets do not go with {what}. Give real y with "
                    "standard errors, of complex y one data set for each part."
                )
            each.append(one)
        sigma = valid = None
        if each[0].sigma is not None:
            sigma = _joined(one.sigma for one in each)
        if any(one.valid is not None for one in each):
            valid = _joined(
                np.ones(one.y.shape, bool) if one.valid is None else one.valid
                for one in each
            )
        return Observed(
            data=Points(
                x=tuple(one.data.x for one in each),
                y=_joined(one.y for one in each),
                sigma=sigma,
            ),
            valid=valid,
            dates=dates,
            shapes=tuple(one.y.shape for one in each),
        )


def _joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])


def _is_pair(node: Any) -> bool:
    return isinstance(node, (tuple, list)) and len(node) == 2 and np.ndim(node[1]) > 0


def _are_apart(y: Any) -> bool:
    """Whether these are data sets: arrays, or lists of lengths that differ."""
    if all(isinstance(one, (list, tuple)) for one in y):
        return len({len(one) for one in y}) > 1
    return all(getattr(one, "ndim", 0) > 0 or isinstance(one, list) for one in y)


def model_of(base: Model, seen: Observed, local: Any) -> Several:
    """The model of several data sets."""
    names = (local,) if isinstance(local, str) else tuple(local)
    for name in names:
        if name not in base.names:
            raise ValueError(
                f"local names {name!r}; the parameters are {', '.join(base.names)}."
            )
    assert seen.shapes is not None
    return Several(base, names, seen.shapes)


# One of them


def view(record: Record, data_set: int | None) -> Record:
    """The fit as it is of one of its data sets; of one that has no more, itself."""
    seen, shapes = record.observed, record.observed.shapes
    if shapes is None:
        if data_set is not None:
            raise ValueError(
                f"data_set is {data_set!r}, and this fit has one data set."
            )
        return record
    number = len(shapes)
    if not (isinstance(data_set, int) and 1 <= data_set <= number):
        raise ValueError(
            f"This fit has {number} data sets: say which, data_set=1 to {number}, as "
            f"in the names of parameters; it is {data_set!r}."
        )
    k = data_set - 1
    data = seen.data

    def own(values: Any) -> Any:
        return None if values is None else parted(np.ravel(values), shapes)[k]

    sigma, model = own(data.sigma), record.problem.model
    if sigma is not None and np.all(sigma == sigma.flat[0]):
        sigma = sigma.flat[0]  # one for all, which then holds for further points
    assert isinstance(model, Several)
    return dataclasses.replace(
        record,
        problem=dataclasses.replace(record.problem, model=OneOf(model.base, model, k)),
        observed=seen._replace(
            data=Points(data.x[k], own(data.y), sigma),
            valid=own(seen.valid),
            shapes=None,
        ),
        numbers=record.numbers._replace(best=own(record.numbers.best)),
    )


def views(record: Record) -> list[Record]:
    """The fit as it is of each of its data sets."""
    shapes = record.observed.shapes
    return (
        [record]
        if shapes is None
        else [view(record, k + 1) for k in range(len(shapes))]
    )


def notes(record: Record) -> list[str]:
    """How well each of several data sets is described, as sentences."""
    if record.observed.shapes is None:
        return []
    sentences = []
    for k, one in enumerate(views(record), start=1):
        rows = one.observed.counted(one.in_errors)
        name, measure = "chi²", float(rows @ rows)
        if one.is_judged:
            name, measure = "twice the cost", 2 * float(np.sum(one.judged.cost))
        sentences.append(f"Data set {k}: {rows.size} points, {name} {measure:.5g}.")
    return sentences
