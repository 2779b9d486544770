"""What deserves a look in a fit, one kind of warning after the other."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float

from jaxfit._core.certificate import Status
from jaxfit.fitting import _several
from jaxfit.fitting._fitted import Parameter, listed
from jaxfit.fitting._likelihood import counted, judged_by
from jaxfit.fitting._record import Record
from jaxfit.fitting.inference._statistics import pattern
from jaxfit.losses import Binomial, Poisson, PoissonGaussian

STRONG = 0.95  # a correlation that deserves a word
VAGUE = 100.0  # an error so many times the value deserves a word
FEW = 8  # points, of which all may lie on one side by chance
ROUNDING = 1e-9
COUNTED = 3.0  # the variance of counts, from which on their signs are even
SURPRISING = 4.0  # standard deviations of the deviance that deserve a word
RUNS = -3.0  # standard deviations of the runs test that deserve a word


def warnings(record: Record) -> list[str]:
    """Sentences about what deserves a look, see `Fit.warnings`."""
    return [*record.remarks, *(text for kind in WARNINGS for text in kind(record))]


def _at_bounds(record: Record) -> Iterator[str]:
    for p in record.params.values():
        if p.at_bound:
            side, bound = ("lower", p.lower) if p.at_bound < 0 else ("upper", p.upper)
            yield (
                f"{p.name} is at its {side} bound, {bound:.6g}; its standard error "
                "takes no notice of that."
            )


def _is_beyond(record: Record, p: Parameter) -> bool:
    """Whether it is no number of floating point at x = 0, where data are far off."""
    has_origin = record.problem.origin is not None
    return has_origin and (p.value == 0 or not math.isfinite(p.value))


def _beyond_numbers(record: Record) -> Iterator[str]:
    unknown = [p for p in record.params.values() if p.undetermined]
    if names := [p.name for p in unknown if _is_beyond(record, p)]:
        yield (
            f"At x = 0, far from the data, {listed(names)} is beyond floating point; "
            "all else holds. Count x from nearer."
        )


def _undetermined(record: Record) -> Iterator[str]:
    unknown = [p for p in record.params.values() if p.undetermined]
    if names := [p.name for p in unknown if not _is_beyond(record, p)]:
        yield (
            f"The data do not determine {listed(names)}; fix "
            f"{'it' if len(names) == 1 else 'some of them'}, tie, or simplify the "
            "model."
        )


def _without_errors(record: Record) -> Iterator[str]:
    parameters = record.params.values()
    names = [p.name for p in parameters if p.determined and math.isinf(p.stderr)]
    if names and record.status == Status.KINK:
        yield (
            f"A kink of the model holds {listed(names)}: there is no standard error; "
            "look at the profile intervals."
        )
    elif names and record.dof > 0:
        yield (
            f"The cost has no curvature along {listed(names)}, so that there is no "
            "standard error; look at the profile intervals."
        )
    elif names:
        yield "No degree of freedom is left, so that there are no errors."


def _with_large_errors(record: Record) -> Iterator[str]:
    if names := _vague(record):
        yield (
            f"The data do not determine {listed(names)}: the error is more than "
            f"{VAGUE:.0f} times the value, beyond linear theory. Look at profile "
            "intervals, fix, tie, or simplify the model."
        )


def _strongly_correlated(record: Record) -> Iterator[str]:
    strong = [
        f"{a} and {b} ({value:+.3f})"
        for (a, b), value in record.correlations.items()
        if abs(value) > STRONG
    ]
    if strong:
        rest = f" and {len(strong) - 4} more pairs" if len(strong) > 4 else ""
        yield (
            f"Strongly correlated: {', '.join(strong[:4])}{rest}. Look at the profile "
            "intervals, which may be longer than the errors say."
        )


def _on_one_side(record: Record) -> Iterator[str]:
    if record.observed.is_correlated:
        return
    residuals = record.observed.counted(_from_expected(record))
    size = np.max(np.abs(record.observed.counted(record.observed.data.y)))
    if len(residuals) >= FEW and _is_of_one_sign(residuals, ROUNDING * size):
        where = "below" if residuals[0] > 0 else "above"
        yield (
            f"All residuals have one sign: the curve lies {where} every point. The "
            "model lacks a constant, or a bound or a tie holds it off."
        )


def _from_expected(record: Record) -> Float[np.ndarray, "..."]:
    """y less what is expected of it, in units of errors if it has a likelihood."""
    return record.in_errors if record.is_judged else record.real_residuals


def _worse_than_a_constant(record: Record) -> Iterator[str]:
    if record.is_judged:
        if not record.problem.prior and _is_less_likely_than_a_constant(record):
            yield (
                f"A constant {np.mean(_counted_y(record)):.4g} has a higher likelihood "
                "than this fit. Try other starts or another model."
            )
    elif record.r_squared < -ROUNDING:
        yield (
            f"R² is {record.r_squared:.3g}, below 0: a constant describes the data "
            "better than this fit. Try other starts or another model."
        )


def _counted_y(record: Record) -> Float[np.ndarray, " m"]:
    return record.observed.counted(record.observed.data.y)


def _is_less_likely_than_a_constant(record: Record) -> bool:
    """Whether the mean of y at all points has a lower cost, without priors."""
    y = _counted_y(record)
    constant = judged_by(counted(record.observed), np.full_like(y, np.mean(y)), y)
    own = float(np.sum(record.judged.cost))
    return float(np.sum(constant.cost)) < own - ROUNDING * abs(own)


def _with_a_pattern(record: Record) -> Iterator[str]:
    runs = min(map(_runs, _several.views(record)))
    if runs < RUNS:
        yield (
            f"The residuals have a pattern: equal signs in runs, {-runs:.1f} standard "
            "deviations too long. The model misses something; see plot_residuals()."
        )


def _prior_without_sigma(record: Record) -> Iterator[str]:
    is_without = record.observed.data.sigma is None and not record.is_judged
    if record.problem.prior and is_without:
        yield "There is a prior and no sigma: the data count as if it were 1."


def _vague(record: Record) -> list[str]:
    """Varied parameters whose errors exceed their values by orders.

    A value near zero is no doubt by itself: a center or an offset may well be zero. So
    the parameter must be bound to one sign, or take its error from the others (its
    variance inflation, the diagonal of the inverse correlation matrix), or be away from
    zero by more than rounding and yet far smaller than its error.
    """
    ratios = {
        p.name: p.stderr / abs(p.value) if p.value else math.inf
        for p in record.params.values()
        if p.kind == "varied" and not p.at_bound and 0 < p.stderr < math.inf
    }
    if not any(ratio > VAGUE for ratio in ratios.values()):
        return []
    places = [k for k, name in enumerate(record.varied) if name in ratios]
    correlation = record.correlation[np.ix_(places, places)]
    correlation = correlation + 1e-12 * np.eye(len(places))
    inflations = np.abs(np.diag(np.linalg.inv(correlation)))
    inflation = dict(zip((record.varied[k] for k in places), inflations, strict=True))
    return [
        name
        for name, ratio in ratios.items()
        if ratio > VAGUE
        and (
            (p := record.params[name]).lower >= 0
            or p.upper <= 0
            or inflation[name] > VAGUE
            or 10 * VAGUE < ratio < 1 / ROUNDING
        )
    ]


def _is_of_one_sign(values: Float[np.ndarray, " m"], rounding: float) -> bool:
    """Whether all are positive or all are negative, by more than rounding somewhere."""
    same = bool(np.all(values > 0) or np.all(values < 0))
    return same and bool(np.max(np.abs(values)) > rounding)


def _runs(record: Record) -> float:
    """The runs test on the residuals in the order of the first coordinate."""
    observed = record.observed
    x, y = observed.data.x, np.shape(observed.y)
    axis = x[0] if isinstance(x, (tuple, list)) else x
    if not hasattr(axis, "shape") or axis.shape != y or len(y) != 1:
        return 0.0
    residuals = np.where(_has_two_sides(record), record.in_errors, np.nan)
    order = np.argsort(axis, kind="stable")
    ordered = residuals.reshape(len(axis), -1)[order].T  # complex ones in two parts
    return min(pattern(part[np.isfinite(part)]) for part in ordered)


def _has_two_sides(record: Record) -> Bool[np.ndarray, "..."]:
    """Which points lie above and below a right curve about equally often.

    Of few counts most lie below their mean, all those between the peaks of a spectrum.
    """
    observed = record.observed
    shape = np.shape(observed.data.y)
    if not isinstance(observed.likelihood, (Poisson, PoissonGaussian, Binomial)):
        return np.ones(shape, bool)
    variance = np.broadcast_to(record.judged.variance, np.shape(_counted_y(record)))
    return observed.spread(variance) > COUNTED


def _with_another_deviance(record: Record) -> Iterator[str]:
    expected = record.expected_deviance
    if expected is None or not expected.deviation > 0:
        return
    excess = (record.deviance - expected.value) / expected.deviation
    if abs(excess) > SURPRISING:
        cause = "The model misses something, or the data scatter more than they may."
        if excess < 0:
            cause = "The data scatter too little: are they smoothed, or scaled counts?"
        yield (
            f"The deviance is {record.deviance:.5g}, where {expected.value:.5g} ± "
            f"{expected.deviation:.3g} is expected: {excess:+.1f} standard deviations. "
            f"{cause}"
        )


WARNINGS: tuple[Callable[[Record], Iterator[str]], ...] = (
    _at_bounds,
    _beyond_numbers,
    _undetermined,
    _without_errors,
    _with_large_errors,
    _strongly_correlated,
    _on_one_side,
    _worse_than_a_constant,
    _with_a_pattern,
    _prior_without_sigma,
    _with_another_deviance,
)
