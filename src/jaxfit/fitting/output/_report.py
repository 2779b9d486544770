"""A fit in words and tables, for people."""

import html as _html
import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from jaxfit._core.certificate import Status
from jaxfit.fitting.inference._statistics import pattern, quantile

if TYPE_CHECKING:
    from jaxfit.fitting._result import Fit, Parameter

WIDTH = 88
STRONG = 0.95  # a correlation that deserves a word
VAGUE = 100.0  # an error so many times the value deserves a word
FEW = 8  # points, of which all may lie on one side by chance
ROUNDING = 1e-9
RUNS = -3.0  # standard deviations of the runs test that deserve a word


def one_line(fit: "Fit") -> str:
    """The model and its parameters in a line."""
    values = ", ".join(f"{n}={v:.6g}" for n, v in fit.values.items())
    return f"<Fit of {fit.model.label}: {values}>"


def short(fit: "Fit") -> str:
    """What `print` shows: how it ended, the parameters, what to look at."""
    lines = [*_wrapped(headline(fit)), _measures(fit), "", *_table(fit)]
    return "\n".join(lines + _warned(fit))


def long(self: "Fit") -> str:
    """The long form: bounds and starts, 95 % intervals, correlations, criteria."""
    fit, g = self, self.goodness
    reach = quantile(0.95, fit.dof, fit.absolute_sigma)
    name = _name_width(fit)
    lines = [*_wrapped(headline(fit)), *_wrapped(f"Errors: {fit.covariance_kind}.")]
    if fit.manner.loss is not None:
        loss = fit.manner.loss
        lines.append(f"Loss: {type(loss).__name__}, scale {float(loss.scale):.6g}.")
    if fit.minima is not None:
        ends = sum(count for _, count in fit.minima)
        lines.append(
            f"Starts: {ends} ended at {len(fit.minima)} distinct "
            f"{'minimum' if len(fit.minima) == 1 else 'minima'}, "
            f"{fit.minima[0][1] if fit.minima else 0} of them at the best."
        )
    measures = [
        ("points", g.ndata, "varied parameters", len(fit.varied)),
        ("degrees of freedom", g.dof, "evaluations", fit.nfev),
        ("chi-square", g.chi_square, "reduced chi-square", g.reduced_chi_square),
        ("R²", g.r_squared, "log-likelihood", g.log_likelihood),
        ("AIC", g.aic, "AICc", g.aicc),
        ("BIC", g.bic, "optimality", fit.numbers["optimality"]),
    ]
    lines += [""] + [
        f"  {a:<20}{_number(b):>14}    {c:<20}{_number(d):>14}"
        for a, b, c, d in measures
    ]
    lines += ["", *_table(fit)]
    lines += ["", f"{'':<{name}}{'95 % interval':>27}{'start':>14}{'bounds':>25}"]
    for p in fit.params.values():
        if p.kind != "varied":
            continue
        low, high = p.value - reach * p.stderr, p.value + reach * p.stderr
        limits = f"{p.lower:.4g} .. {p.upper:.4g}"
        if math.isinf(p.lower) and math.isinf(p.upper):
            limits = "none"
        inside = f"{low:.6g} .. {high:.6g}"
        lines.append(f"{p.name:<{name}}{inside:>27}{p.start:>14.6g}{limits:>25}")
    strong = [(k, v) for k, v in fit.correlations.items() if abs(v) >= 0.1][:12]
    if strong:
        lines += ["", "correlations of at least 0.1, the strongest first"]
        lines += [f"  {a} and {b}: {value:+.3f}" for (a, b), value in strong]
    return "\n".join(lines + _warned(fit))


def headline(fit: "Fit") -> str:
    """The model and how the fit ended."""
    return f"{fit.model.label}, {_counted(fit.nfev, 'evaluation')}. {fit.message}"


def beyond(outside: list["Parameter"]) -> str:
    """What is wrong with tied parameters outside their bounds."""
    told = [f"{p.name} = {p.value:.6g} ({p.lower:g} .. {p.upper:g})" for p in outside]
    return (
        f"The best fit takes what is tied out of its bounds: {_listed(told)}. Tie it "
        "otherwise, or bound what it depends on."
    )


def failure(fit: "Fit") -> str:
    """The message of a fit that found nothing."""
    values = ", ".join(f"{n} = {v:.6g}" for n, v in fit.values.items())
    return (
        f"{fit.model.label} found no solution. {fit.message} After {fit.nfev} "
        f"evaluations it stood at {values}, chi-square {2 * fit.numbers['cost']:.6g}. "
        f"{''.join(f'{remark} ' for remark in fit.remarks)}"
        "Try other starts (p0=...), bounds, or starts=64; the exception's attribute "
        "`fit` can be printed and plotted."
    )


def warnings(self: "Fit") -> list[str]:
    """Sentences about what deserves a look, each with what to do."""
    fit = self
    found = list(fit.remarks)
    for p in fit.params.values():
        if p.at_bound:
            side, bound = ("lower", p.lower) if p.at_bound < 0 else ("upper", p.upper)
            found.append(
                f"{p.name} is at its {side} bound, {bound:.6g}; its standard error "
                "takes no notice of that."
            )
    unknown = [p for p in fit.params.values() if p.undetermined]
    if fit.problem.origin is not None:
        beyond = [p for p in unknown if p.value == 0 or not math.isfinite(p.value)]
        unknown = [p for p in unknown if p not in beyond]
        if beyond:
            found.append(
                f"At x = 0, far from the data, {_listed([p.name for p in beyond])} is "
                "beyond floating point; all else holds. Count x from nearer."
            )
    lost = [p.name for p in unknown]
    if lost:
        found.append(
            f"The data do not determine {_listed(lost)}; fix "
            f"{'it' if len(lost) == 1 else 'some of them'}, tie, or simplify the model."
        )
    endless = [p for p in fit.params.values() if p.determined and math.isinf(p.stderr)]
    if endless and fit.status == Status.KINK:
        found.append(
            f"A kink of the model holds {_listed([p.name for p in endless])}: there is "
            "no standard error; look at the profile intervals."
        )
    elif endless:
        found.append("No degree of freedom is left, so that there are no errors.")
    vague = _vague(fit)
    if vague:
        found.append(
            f"The data do not determine {_listed(vague)}: the error is more than "
            f"{VAGUE:.0f} times the value, beyond linear theory. Look at profile "
            "intervals, fix, tie, or simplify the model."
        )
    strong = [
        f"{a} and {b} ({value:+.3f})"
        for (a, b), value in fit.correlations.items()
        if abs(value) > STRONG
    ]
    if strong:
        more = f" and {len(strong) - 4} more pairs" if len(strong) > 4 else ""
        found.append(
            f"Strongly correlated: {', '.join(strong[:4])}{more}. Look at the profile "
            "intervals, which may be longer than the errors say."
        )
    left, y = fit.observed.counted(fit.residuals, fit.observed.data.y)
    if len(left) >= FEW and _is_of_one_sign(left, ROUNDING * np.max(np.abs(y))):
        where = "below" if left[0] > 0 else "above"
        found.append(
            f"All residuals have one sign: the curve lies {where} every point. The "
            "model lacks a constant, or a bound or a tie holds it off."
        )
    if fit.r_squared < -ROUNDING:
        found.append(
            f"R² is {fit.r_squared:.3g}, below 0: a constant describes the data better "
            "than this fit. Try other starts or another model."
        )
    runs = _runs(fit)
    if runs < RUNS:
        found.append(
            f"The residuals have a pattern: equal signs in runs, {-runs:.1f} standard "
            "deviations too long. The model misses something; see plot_residuals()."
        )
    if fit.problem.prior and fit.observed.data.sigma is None:
        found.append("There is a prior and no sigma: the data count as if it were 1.")
    return found


def _vague(fit: "Fit") -> list[str]:
    """Varied parameters whose errors exceed their values by orders.

    A value near zero is no doubt by itself: a center or an offset may well be zero. So
    the parameter must be bound to one sign, or take its error from the others (its
    variance inflation, the diagonal of the inverse correlation matrix), or be away from
    zero by more than rounding and yet far smaller than its error.
    """
    ratios = {
        p.name: p.stderr / abs(p.value) if p.value else math.inf
        for p in fit.params.values()
        if p.kind == "varied" and not p.at_bound and 0 < p.stderr < math.inf
    }
    if not any(ratio > VAGUE for ratio in ratios.values()):
        return []
    known = [k for k, name in enumerate(fit.varied) if name in ratios]
    correlation = fit.correlation[np.ix_(known, known)] + 1e-12 * np.eye(len(known))
    inflations = np.abs(np.diag(np.linalg.inv(correlation)))
    inflation = dict(zip((fit.varied[k] for k in known), inflations, strict=True))
    return [
        name
        for name, ratio in ratios.items()
        if ratio > VAGUE
        and (
            (p := fit.params[name]).lower >= 0
            or p.upper <= 0
            or inflation[name] > VAGUE
            or 10 * VAGUE < ratio < 1 / ROUNDING
        )
    ]


def _is_of_one_sign(values: np.ndarray, rounding: float) -> bool:
    """Whether all are positive or all are negative, by more than rounding somewhere."""
    same = bool(np.all(values > 0) or np.all(values < 0))
    return same and bool(np.max(np.abs(values)) > rounding)


def _runs(fit: "Fit") -> float:
    """The runs test on the residuals in the order of the first coordinate."""
    x, y = fit.observed.data.x, np.shape(fit.observed.data.y)
    axis = x[0] if isinstance(x, (tuple, list)) else x
    if not hasattr(axis, "shape") or axis.shape != y or len(y) != 1:
        return 0.0
    axis, left = fit.observed.counted(axis, fit.residuals)
    return pattern(left[np.argsort(axis, kind="stable")])


def _warned(fit: "Fit") -> list[str]:
    """The warnings as lines, behind an empty one."""
    lines = [line for text in warnings(fit) for line in _wrapped(text, "! ", "  ")]
    return ["", *lines] if lines else []


# Tables


def _measures(fit: "Fit") -> str:
    g = fit.goodness
    return (
        f"{_counted(g.ndata, 'point')}, {_counted(g.dof, 'degree')} of freedom, "
        f"chi² {g.chi_square:.5g} "
        f"(reduced {g.reduced_chi_square:.4g}), R² {g.r_squared:.5g}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _name_width(fit: "Fit") -> int:
    names = [*fit.params, *fit.derived, "parameter"]
    return min(max(map(len, names)) + 2, 34)


def _table(fit: "Fit") -> list[str]:
    """Values and errors, in lines that fit the width."""
    width = _name_width(fit)
    lines = [f"{'parameter':<{width}}{'value':>16}{'std. error':>14}{'':>9}"]
    lines += [_row(p, width) for p in fit.params.values()]
    if fit.derived:
        lines.append(f"{'derived':<{width}}")
        lines += [_row(p, width) for p in fit.derived.values()]
    return [line.rstrip() for line in lines]


def _row(p: "Parameter", width: int) -> str:
    return (
        f"{p.name[: width - 1]:<{width}}{rounded(p.value, p.stderr):>16}"
        f"{_error(p):>14}{_relative(p):>9}  {_note(p)}"
    ).rstrip()


def rounded(value: float, stderr: float) -> str:
    """A value to two digits of its error, and to six of its own at most ten."""
    if not (0 < stderr < math.inf and 0 < abs(value) < math.inf):
        return f"{value:.6g}"
    digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(stderr)) + 2
    return f"{value:#.{min(max(digits, 2), 10)}g}"


def _error(p: "Parameter") -> str:
    if p.kind == "fixed":
        return "fixed"
    return f"{p.stderr:#.2g}" if math.isfinite(p.stderr) else "unknown"


def _relative(p: "Parameter") -> str:
    if p.kind == "fixed" or not math.isfinite(p.stderr) or p.value == 0:
        return ""
    part = abs(p.stderr / p.value)
    return f"{part:.1%}" if part < 100 else ""


def _note(p: "Parameter") -> str:
    notes = []
    if p.kind == "tied":
        notes.append("tied, outside its bounds" if p.is_outside else "tied")
    if p.at_bound:
        notes.append("at lower bound" if p.at_bound < 0 else "at upper bound")
    return ", ".join(notes)


def _number(value) -> str:
    return str(value) if isinstance(value, int) else f"{value:.7g}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    if len(first) + len(text) <= WIDTH:
        return [first + text]
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest)


# Notebooks


def html(fit: "Fit") -> str:
    """Tables for a notebook."""
    rows = []
    for p in [*fit.params.values(), *fit.derived.values()]:
        cells = (rounded(p.value, p.stderr), _error(p), _relative(p), _note(p))
        kind = "derived" if p.kind == "derived" else ""
        rows.append(
            f"<tr><th style='text-align:left'>{_html.escape(p.name)}</th>"
            + "".join(f"<td>{_html.escape(cell)}</td>" for cell in (*cells, kind))
            + "</tr>"
        )
    words = "".join(f"<li>{_html.escape(text)}</li>" for text in warnings(fit))
    return (
        f"<p>{_html.escape(headline(fit))}<br>{_html.escape(_measures(fit))}</p>"
        "<table><thead><tr><th></th><th>value</th><th>std. error</th><th></th>"
        f"<th></th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        + (f"<ul>{words}</ul>" if words else "")
    )
