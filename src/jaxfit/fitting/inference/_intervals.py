"""Intervals of a fit's parameters: Wald's, by profile likelihood, by bootstrap."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxfit.fitting._programs import Case, for_solver
from jaxfit.fitting.inference import _bootstrap as _resample
from jaxfit.fitting.inference import _profile
from jaxfit.fitting.inference._bootstrap import Bootstrap
from jaxfit.fitting.inference._statistics import check_level, joint_threshold, quantile

if TYPE_CHECKING:
    from jaxfit.fitting._result import Fit

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

    def _ends(self, k: int) -> zip:
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


def intervals(
    self: "Fit",
    kind: str = "wald",
    level: float | Sequence[float] = 0.95,
    **settings: Any,
) -> Intervals:
    """Confidence intervals.

    Args:
        kind: "wald", symmetric, from standard errors and Student's t; "profile", where
            chi-square rises by the square of that, right also where the model is
            curved, not symmetric; "bootstrap", percentiles of refits.
        level: one or several probabilities.
        **settings: of `bootstrap`: number, resample, seed.

    Returns:
        `Intervals`, of the varied parameters, and for Wald and bootstrap of tied and
        derived quantities too.
    """
    levels = levels_of(level)
    if kind == "wald":
        if settings:
            raise TypeError(f"Wald intervals have no settings; given: {settings}.")
        return _wald(self, levels)
    if kind == "profile":
        if settings:
            raise TypeError(f"Profile intervals have no settings; given: {settings}.")
        return _by_profile(self, levels)
    if kind == "bootstrap":
        return of_bootstrap(self, bootstrap(self, **settings), levels)
    raise ValueError(f"kind is {kind!r}; give one of {', '.join(KINDS)}.")


def levels_of(level: float | Iterable[float]) -> tuple[float, ...]:
    """One or several probabilities, checked."""
    levels = tuple(level) if isinstance(level, Iterable) else (level,)
    for one in levels:
        check_level(one)
    return levels


def _names(fit: "Fit") -> tuple[str, ...]:
    return fit.problem.names + fit.problem.derived_names


def _wald(fit: "Fit", levels) -> Intervals:
    values, errors = fit.numbers["values"], fit.numbers["errors"]
    reach = np.array([quantile(p, fit.dof, fit.absolute_sigma) for p in levels])
    reach = np.where(errors[:, None] == 0, 0, errors[:, None] * reach)
    around = np.where(np.isfinite(errors), values, 0)[:, None]
    return Intervals(
        "wald", levels, _names(fit), values, around - reach, around + reach
    )


def of_bootstrap(fit: "Fit", samples: Bootstrap, levels) -> Intervals:
    """Percentiles of the refits that ended well."""
    good = samples.values[samples.status > 0]
    tails = np.array([[0.5 * (1 - p), 0.5 * (1 + p)] for p in levels])
    ends = np.quantile(good, tails, axis=0)  # (levels, 2, k)
    return Intervals(
        *("bootstrap", levels, _names(fit), fit.numbers["values"]),
        *(ends[:, 0].T, ends[:, 1].T),
    )


def bootstrap(
    self: "Fit", number: int = 2000, resample: str = "residual", seed: int = 0
) -> Bootstrap:
    """Refits of resampled data, all in one batch.

    Args:
        number: of refits.
        resample: "residual", the fitted curve and residuals drawn among all; "case",
            points drawn with their errors, right also where errors are not alike;
            "parametric", the fitted curve and normal errors.
        seed: of the random numbers.
    """
    return _resample.run(self, number, resample, seed)


def profile(
    self: "Fit", names: str | Sequence[str] | None = None, points: int = 25
) -> list[Profile]:
    """Chi-square along each parameter, with the others fitted anew at every point.

    Args:
        names: varied parameters; None: all.
        points: for each, over three standard errors on either side.
    """
    chosen = _varied(self, names)
    found: dict[int, Profile] = {}
    for view, own in _views(self, chosen):
        found |= _profiles(view, own, points)
    return [found[k] for k in chosen if k in found]


def _profiles(fit: "Fit", chosen: list[int], points: int) -> dict[int, Profile]:
    gram, scale = _profile.ray_context(fit)
    n, bounds = len(fit.varied), fit.problem.bounds
    t = np.linspace(-3.2, 3.2, points) * np.sqrt(scale)
    known = [k for k in chosen if np.isfinite(gram[k, k])]
    held = np.repeat(np.eye(n, dtype=bool)[known], points, axis=0)
    rays = _rays(fit, held, held.astype(float))
    places = np.tile(t, len(known))
    if bounds is not None:
        own = np.repeat(known, points)
        at = rays.x[own] + places * rays.tangent[held]
        inside = np.clip(at, *(bound[own] for bound in bounds))
        places = (inside - rays.x[own]) / rays.tangent[held]
    zeta, x = _profile.trace(fit.problem, _case(fit), fit.manner, rays, places)
    found = {}
    for i, k in enumerate(known):
        part = slice(i * points, (i + 1) * points)
        order = np.argsort(x[part, k], kind="stable")
        found[k] = Profile(
            fit.varied[k],
            x[part, k][order],
            zeta[part][order] / np.sqrt(scale),
            x[part][order],
        )
    return found


def contour(
    self: "Fit",
    a: str,
    b: str,
    level: float | Sequence[float] = SIGMAS,
    points: int = 64,
) -> Contour:
    """The edges of joint confidence regions of two parameters, by profile likelihood.

    In every direction the place is found where chi-square, minimised over all other
    parameters, has risen by its threshold (for unknown sigma by the F distribution).
    """
    levels = levels_of(level)
    i, j = _varied(self, [a, b])
    if i == j:
        raise ValueError(f"a and b are both {a!r}; give two parameters.")
    view = _views(self, [i, j])[-1][0]
    gram, scale = _profile.ray_context(view)
    pair = gram[np.ix_([i, j], [i, j])]
    if not np.isfinite(pair).all():
        raise ValueError(f"The data do not determine {a} and {b}: no region is closed.")
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    directions = np.zeros((points, len(self.varied)))
    directions[:, [i, j]] = circle @ np.linalg.cholesky(pair).T
    held = np.zeros(directions.shape, bool)
    held[:, [i, j]] = True
    rays = _rays(
        view, np.tile(held, (len(levels), 1)), np.tile(directions, (len(levels), 1))
    )
    rise = [joint_threshold(p, 2, self.dof, self.absolute_sigma) for p in levels]
    targets = np.repeat(np.sqrt(np.array(rise) * scale), points)
    ends = _profile.walk(view.problem, _case(self), self.manner, rays, targets)
    reached = np.isfinite(ends.t)[:, None]
    found = np.where(reached, ends.x[:, [i, j]], np.nan)
    return Contour((a, b), levels, found.reshape(len(levels), points, 2))


def _views(fit: "Fit", chosen: list[int]) -> list[tuple["Fit", list[int]]]:
    """The chosen parameters, and the fit in coordinates where each can be held alone.

    Those of the solver, and for x as it is where another origin mixes a parameter with
    others: in the latter, which come last, any can be held.
    """
    problem = fit.problem
    if problem.origin is None:
        return [(fit, chosen)]
    own = {name: for_solver(fit.numbers, name) for name in ("x", "covariance")}
    solvers = dataclasses.replace(fit, numbers={**fit.numbers, **own})
    peoples = dataclasses.replace(
        fit, problem=dataclasses.replace(problem, origin=None)
    )
    mixed = [k for k in chosen if fit.varied[k] in problem.mixed]
    plain = [k for k in chosen if k not in mixed]
    both = [(solvers, plain), (peoples, mixed)]
    return [(view, own) for view, own in both if own]


def _by_profile(fit: "Fit", levels) -> Intervals:
    n, count = len(fit.varied), len(levels)
    lower, upper = np.full((n, count), -np.inf), np.full((n, count), np.inf)
    for view, chosen in _views(fit, list(range(n))):
        _ends(view, chosen, levels, lower, upper)
    x = fit.numbers["x"]
    return Intervals("profile", levels, fit.varied, x, lower, upper)


def _ends(fit: "Fit", chosen: list[int], levels, lower, upper) -> None:
    """Fills in the ends of some parameters' intervals."""
    gram, scale = _profile.ray_context(fit)
    n, count = len(fit.varied), len(levels)
    known = np.array([k for k in chosen if np.isfinite(gram[k, k])], int)
    if len(known) and fit.dof > 0:
        held = np.eye(n, dtype=bool)[known]
        signs = np.array([-1.0, 1.0])
        # (sign, level, parameter)
        shape = (2, count, len(known))
        directions = signs[:, None, None, None] * np.ones(shape)[..., None] * held
        rays = _rays(
            *(fit, np.broadcast_to(held, (*shape, n)).reshape(-1, n)),
            directions.reshape(-1, n),
        )
        target = [quantile(p, fit.dof, fit.absolute_sigma) for p in levels]
        target = np.broadcast_to(np.array(target)[:, None], shape) * np.sqrt(scale)
        ends = _profile.walk(fit.problem, _case(fit), fit.manner, rays, target.ravel())
        own = np.tile(known, 2 * count)
        at = np.where(np.isfinite(ends.t), ends.x[np.arange(len(own)), own], np.inf)
        at = at.reshape(shape)
        lower[known] = np.where(np.isfinite(at[0]), at[0], -np.inf).T
        upper[known] = at[1].T


def _varied(fit: "Fit", names) -> list[int]:
    """The places of some varied parameters."""
    if names is None:
        return list(range(len(fit.varied)))
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in fit.varied:
            raise ValueError(
                f"{name!r} did not vary in this fit; these did: "
                f"{', '.join(fit.varied)}."
            )
    return [fit.varied.index(name) for name in names]


def _case(fit: "Fit") -> Case:
    return Case(fit.observed.data, fit.observed.valid, {})


def _rays(fit: "Fit", held, directions):
    gram, _ = _profile.ray_context(fit)
    known = np.isfinite(np.diagonal(gram))
    gram = np.where(known[:, None] & known, gram, 0)
    cost, x = fit.numbers["cost"], fit.numbers["x"]
    return _profile.rays_of(held, directions, gram, cost, x)
