"""Intervals of a fit's parameters: Wald's, by profile likelihood, by bootstrap."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxfit.fitting._record import Record
from jaxfit.fitting.inference import _profile
from jaxfit.fitting.inference._bootstrap import Bootstrap, bootstrap
from jaxfit.fitting.inference._statistics import check_level, joint_threshold, quantile

Level = int | float | Iterable[float]  # one probability or several
Levels = tuple[float, ...]

SIGMAS = (0.6826894921370859, 0.9544997361036416)  # one and two standard deviations
KINDS = "wald", "profile", "bootstrap"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Intervals:
    """Intervals by name: `intervals["width"]` is (lower, upper), or one by level.

    Attributes:
        kind: "wald", "profile" or "bootstrap".
        levels: how often such an interval holds the truth.
        names: of the parameters, and of derived quantities where there are any.
        values: (k,).
        lower, upper: (k, levels); infinite where there is no end.
    """

    kind: str
    levels: tuple[float, ...]
    names: tuple[str, ...]
    values: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def _ends(self, k: int) -> Iterable[tuple[Any, Any]]:
        return zip(self.lower[k], self.upper[k], strict=True)

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(f"{name!r}; there are {', '.join(self.names)}")
        k = self.names.index(name)
        pairs = [(float(a), float(b)) for a, b in self._ends(k)]
        if len(pairs) == 1:
            return pairs[0]
        return dict(zip(self.levels, pairs, strict=True))

    def __str__(self) -> str:
        heads = "".join(f"{f'{100 * level:.4g} %':>28}" for level in self.levels)
        lines = [f"{self.kind} intervals", f"{'':<16}{'value':>12}{heads}"]
        for k, name in enumerate(self.names):
            ends = "".join(f"{f'{a:.6g} .. {b:.6g}':>28}" for a, b in self._ends(k))
            lines.append(f"{name:<16}{self.values[k]:>12.6g}{ends}")
        return "\n".join(lines)

    __repr__ = __str__


class Profile(NamedTuple):
    """What chi-square does when one parameter is moved and the others follow."""

    name: str
    values: np.ndarray  # (points,) of the parameter
    zeta: np.ndarray  # (points,) signed root of the rise of chi-square / s²
    x: np.ndarray  # (points, n) the varied parameters


class Contour(NamedTuple):
    """The edge of a joint region of two parameters, a closed line for each level."""

    names: tuple[str, str]
    levels: tuple[float, ...]
    points: np.ndarray  # (levels, points, 2)


def intervals(record: Record, kind: str, level: Level, **settings: Any) -> Intervals:
    """Confidence intervals, see `Fit.intervals`."""
    levels = levels_of(level)
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; give one of {', '.join(KINDS)}.")
    if kind == "bootstrap":
        return of_bootstrap(record, bootstrap(record, **settings), levels)
    if settings:
        raise TypeError(
            f"{kind.capitalize()} intervals have no settings; given: {settings}."
        )
    return _wald(record, levels) if kind == "wald" else _by_profile(record, levels)


def levels_of(level: Level) -> Levels:
    """One or several probabilities, checked."""
    levels = tuple(level) if isinstance(level, Iterable) else (level,)
    for probability in levels:
        check_level(probability)
    return levels


def _wald(record: Record, levels: Levels) -> Intervals:
    values, errors = record.numbers.values, record.numbers.errors
    reach = np.array([quantile(p, record.dof, record.absolute_sigma) for p in levels])
    reach = np.where(errors[:, None] == 0, 0, errors[:, None] * reach)
    around = np.where(np.isfinite(errors), values, 0)[:, None]
    return Intervals(
        kind="wald",
        levels=levels,
        names=_names(record),
        values=values,
        lower=around - reach,
        upper=around + reach,
    )


def of_bootstrap(record: Record, samples: Bootstrap, levels: Levels) -> Intervals:
    """Percentiles of the refits that ended well."""
    good = samples.values[samples.status > 0]
    tails = np.array([[0.5 * (1 - p), 0.5 * (1 + p)] for p in levels])
    ends = np.quantile(good, tails, axis=0)  # (levels, 2, k)
    return Intervals(
        kind="bootstrap",
        levels=levels,
        names=_names(record),
        values=record.numbers.values,
        lower=ends[:, 0].T,
        upper=ends[:, 1].T,
    )


def _names(record: Record) -> tuple[str, ...]:
    return record.problem.names + record.problem.derived_names


# By profile likelihood


class _View(NamedTuple):
    """A fit in coordinates where each of some parameters can be held alone."""

    record: Record
    chosen: list[int]  # places of varied parameters

    @property
    def scale(self) -> float:
        """The scale s² of chi-square."""
        record = self.record
        return 1.0 if record.absolute_sigma else record.reduced_chi_square

    @property
    def gram(self) -> Float[np.ndarray, "n n"]:
        """The inverse Gram matrix of the fit's free directions.

        Of a likelihood as wide, along a parameter at its bound, as the slope there has
        it: where all counts are zero and so is their mean, the curvature is without
        end, and minus twice the log-likelihood rises by 1 over 1 / (2 slope).
        """
        gram, numbers = self.record.covariance / self.scale, self.record.numbers
        if not (self.record.is_judged and np.any(numbers.active)):
            return gram
        with np.errstate(divide="ignore", invalid="ignore"):
            width = 1 / (2 * np.abs(numbers.gradient) * np.sqrt(gram.diagonal()))
        is_wider = (numbers.active != 0) & (width > 1) & np.isfinite(width)
        factor = np.where(is_wider, width, 1)
        return gram * np.outer(factor, factor)

    @property
    def determined(self) -> list[int]:
        """The chosen parameters that the data determine."""
        variance = self.gram.diagonal()
        return [k for k in self.chosen if np.isfinite(variance[k])]

    def rays(
        self, directions: Float[np.ndarray, "r n"], held: Bool[np.ndarray, "r n"]
    ) -> _profile.Rays:
        """Rays from the fit."""
        gram, numbers = self.gram, self.record.numbers
        is_finite = np.isfinite(gram.diagonal())
        gram = np.where(is_finite[:, None] & is_finite, gram, 0)
        return _profile.Rays.along(directions, held, gram, numbers.cost, numbers.x)


def _views(record: Record, chosen: list[int]) -> list[_View]:
    """The chosen parameters, each in a view where it can be held.

    Those of the solver, and for x as it is where another origin mixes a parameter with
    others: in the latter, which come last, any can be held.
    """
    problem, numbers = record.problem, record.numbers
    if problem.origin is None:
        return [_View(record, chosen)]
    of_solver = dataclasses.replace(
        record, numbers=numbers._replace(**numbers.at_solver._asdict())
    )
    of_people = dataclasses.replace(
        record,
        problem=dataclasses.replace(problem, origin=None),
        numbers=numbers._replace(solver_x=None, solver_covariance=None),
    )
    mixed = [k for k in chosen if record.varied[k] in problem.mixed]
    plain = [k for k in chosen if k not in mixed]
    views = _View(of_solver, plain), _View(of_people, mixed)
    return [view for view in views if view.chosen]


def _varied(record: Record, names: str | Iterable[str] | None) -> list[int]:
    """The places of some varied parameters."""
    if names is None:
        return list(range(len(record.varied)))
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in record.varied:
            raise ValueError(
                f"{name!r} did not vary in this fit; these did: "
                f"{', '.join(record.varied)}."
            )
    return [record.varied.index(name) for name in names]


def profile(
    record: Record, names: str | Iterable[str] | None = None, points: int = 25
) -> list[Profile]:
    """Chi-square along each parameter, see `Fit.profile`."""
    chosen = _varied(record, names)
    profiles: dict[int, Profile] = {}
    for view in _views(record, chosen):
        profiles |= _profiles(view, points)
    return [profiles[k] for k in chosen if k in profiles]


def _profiles(view: _View, points: int) -> dict[int, Profile]:
    record, scale, determined = view.record, view.scale, view.determined
    if not determined:
        return {}
    n, bounds = len(record.varied), record.problem.bounds
    held = np.repeat(np.eye(n, dtype=bool)[determined], points, axis=0)
    rays = view.rays(held.astype(float), held)
    steps = np.linspace(-3.2, 3.2, points) * np.sqrt(scale)
    places = np.tile(steps, len(determined))
    if bounds is not None:
        which = np.repeat(determined, points)
        at = rays.x[which] + places * rays.tangent[held]
        inside = np.clip(at, *(bound[which] for bound in bounds))
        places = (inside - rays.x[which]) / rays.tangent[held]
    traces = _profile.trace(_profile.Refit.of(record), rays, places)
    profiles = {}
    for i, k in enumerate(determined):
        part = slice(i * points, (i + 1) * points)
        x, zeta = traces.x[part], traces.zeta[part]
        order = np.argsort(x[:, k], kind="stable")
        profiles[k] = Profile(
            name=record.varied[k],
            values=x[order, k],
            zeta=zeta[order] / np.sqrt(scale),
            x=x[order],
        )
    return profiles


def contour(
    record: Record,
    a: str,
    b: str,
    level: Level = SIGMAS,
    points: int = 64,
) -> Contour:
    """The edges of joint confidence regions, see `Fit.contour`."""
    levels = levels_of(level)
    i, j = _varied(record, [a, b])
    if i == j:
        raise ValueError(f"a and b are both {a!r}; give two parameters.")
    view = _views(record, [i, j])[-1]
    pair = view.gram[np.ix_([i, j], [i, j])]
    if not np.isfinite(pair).all():
        raise ValueError(f"The data do not determine {a} and {b}: no region is closed.")
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    directions = np.zeros((points, len(record.varied)))
    directions[:, [i, j]] = circle @ np.linalg.cholesky(pair).T
    held = np.zeros(directions.shape, bool)
    held[:, [i, j]] = True
    again = len(levels), 1
    rays = view.rays(np.tile(directions, again), np.tile(held, again))
    rise = [joint_threshold(p, 2, record.dof, record.absolute_sigma) for p in levels]
    targets = np.repeat(np.sqrt(np.array(rise) * view.scale), points)
    ends = _profile.walk(_profile.Refit.of(view.record), rays, targets)
    reached = np.isfinite(ends.t)[:, None]
    edges = np.where(reached, ends.x[:, [i, j]], np.nan)
    return Contour((a, b), levels, edges.reshape(len(levels), points, 2))


def _by_profile(record: Record, levels: Levels) -> Intervals:
    n, count = len(record.varied), len(levels)
    lower, upper = np.full((n, count), -np.inf), np.full((n, count), np.inf)
    for view in _views(record, list(range(n))):
        which = view.determined
        if which and record.dof > 0:
            ends = _ends(view, levels)
            lower[which], upper[which] = ends[0].T, ends[1].T
    return Intervals(
        kind="profile",
        levels=levels,
        names=record.varied,
        values=record.numbers.x,
        lower=lower,
        upper=upper,
    )


def _ends(view: _View, levels: Levels) -> Float[np.ndarray, "2 levels k"]:
    """The lower and upper ends of the intervals of parameters that are determined."""
    record, determined = view.record, view.determined
    shape = (2, len(levels), len(determined))
    signs = np.array([-1.0, 1.0])[:, None, None]
    n = len(record.varied)
    held = np.eye(n, dtype=bool)[determined]
    directions = np.broadcast_to(signs[..., None] * held, (*shape, n)).reshape(-1, n)
    held = np.broadcast_to(held, (*shape, n)).reshape(-1, n)
    reach = [quantile(p, record.dof, record.absolute_sigma) for p in levels]
    targets = np.broadcast_to(np.array(reach)[:, None], shape) * np.sqrt(view.scale)
    rays = view.rays(directions, held)
    ends = _profile.walk(_profile.Refit.of(record), rays, targets.ravel())
    which = np.tile(determined, 2 * len(levels))
    at = ends.x[np.arange(len(which)), which].reshape(shape)
    is_reached = np.isfinite(ends.t).reshape(shape) & np.isfinite(at)
    return np.where(is_reached, at, signs * np.inf)
