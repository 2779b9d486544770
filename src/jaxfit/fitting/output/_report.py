"""A fit in words and tables, for people."""

import html as _html
import math
import textwrap
from typing import Any

import numpy as np

from jaxfit._core.certificate import Status
from jaxfit.fitting import _several
from jaxfit.fitting._batch_record import BatchRecord
from jaxfit.fitting._fitted import Parameter, listed
from jaxfit.fitting._likelihood import ExpectedDeviance
from jaxfit.fitting._priors import words_of
from jaxfit.fitting._record import Record
from jaxfit.fitting._together import Together
from jaxfit.fitting.inference._statistics import quantile
from jaxfit.fitting.output._warnings import warnings
from jaxfit.losses import Likelihood, Loss

WIDTH = 88


def one_line(record: Record) -> str:
    """The model and its parameters in a line."""
    values = ", ".join(f"{n}={v:.6g}" for n, v in record.values.items())
    return f"<Fit of {record.model.label}: {values}>"


def short(record: Record) -> str:
    """What `print` shows: how it ended, the parameters, what to look at."""
    lines = [
        *_wrapped(headline(record)),
        _measures(record),
        *_notes(record),
        "",
        *_table(record),
    ]
    return "\n".join(lines + _warned(record))


def long(record: Record) -> str:
    """The long form, see `Fit.report`."""
    lines = [
        *_wrapped(headline(record)),
        *_wrapped(f"Errors: {record.covariance_kind}."),
        *_method(record),
        *_notes(record),
        "",
        *_criteria(record),
        "",
        *_table(record),
        "",
        *_starts_and_bounds(record),
        *_correlations(record),
    ]
    return "\n".join(lines + _warned(record))


def headline(record: Record) -> str:
    """The model and how the fit ended."""
    evaluations = _counted(record.nfev, "evaluation")
    return f"{record.model.label}, {evaluations}. {record.message}"


def failure(record: Record) -> str:
    """The message of a fit that found nothing."""
    values = ", ".join(f"{n} = {v:.6g}" for n, v in record.values.items())
    advice = "Try other starts (p0=...), bounds, or starts=64; the"
    if record.status == Status.STOPPED:
        advice = "The"
    return (
        f"{record.model.label} found no solution. {record.message} After "
        f"{_counted(record.nfev, 'evaluation')} it stood at {values}, "
        f"{_cost_name(record.observed.likelihood)} {2 * record.numbers.cost:.6g}. "
        f"{''.join(f'{remark} ' for remark in record.remarks)}"
        f"{advice} exception's attribute `fit` can be printed and plotted."
    )


def batch(record: BatchRecord) -> str:
    """What `print` shows of many fits: how many ended how, and medians."""
    good, total = int(record.success.sum()), record.success.size
    if record.together is not None:
        lines = _of_all(record, record.together)
    else:
        lines = [
            f"{record.model.label}: {total} fits {record.shape}, {good} with success "
            f"({good / max(total, 1):.2%})"
        ]
    if record.dates is not None:
        lines.append(f"x: {record.dates.words}.")
    codes, counts = np.unique(record.status, return_counts=True)
    lines += [
        f"  {Status(int(code)).name:<18}{number:>10}"
        for code, number in zip(codes, counts, strict=True)
        if code <= 0
    ]
    lines.append(f"{'':<20}{'median':>13}{'16 %':>13}{'84 %':>13}{'median error':>15}")
    errors = record.errors | record.derived_errors
    for name, values in (record.values | record.derived).items():
        if name in record.single:
            continue
        is_good = record.success & np.isfinite(values)
        if not is_good.any():
            continue
        middle, low, high = np.quantile(values[is_good], [0.5, 0.16, 0.84])
        error = np.median(errors[name][is_good])
        lines.append(
            f"{name[:19]:<20}{middle:>13.5g}{low:>13.5g}{high:>13.5g}{error:>15.3g}"
        )
    for name, determined in record.determined.items():
        if name in record.single:
            continue
        number = int(np.sum(record.success & ~determined))
        if number:
            lines.append(
                f"! The data do not determine {name} in {number} of {good} fits."
            )
    return "\n".join(lines)


def _of_all(record: BatchRecord, together: Together) -> list[str]:
    """The head of what `print` shows where parameters are shared, and their values."""
    evaluations = _counted(together.nfev, "evaluation")
    head = (
        f"{record.model.label}: {record.success.size} data sets {record.shape} that "
        f"share {listed(list(together.shared))}, {evaluations}. "
        f"{Status(together.status).message}"
    )
    values, errors = record.values | record.derived, record.errors
    errors, at_bound = errors | record.derived_errors, record.at_bound
    single = {
        name: Parameter(
            name=name,
            value=values[name],
            stderr=errors[name],
            kind="varied" if name in at_bound else "derived",
            at_bound=at_bound.get(name, 0),
        )
        for name in together.single
    }
    width = min(max(map(len, [*single, "shared"])) + 2, 34)
    table = [f"{'shared':<{width}}{'value':>16}{'std. error':>14}"]
    table += [_row(parameter, width) for parameter in single.values()]
    open_ones = [
        name for name, is_known in record.determined.items() if not np.all(is_known)
    ]
    open_ones = [name for name in open_ones if name in single]
    if open_ones:
        table.append(f"! The data do not determine {listed(open_ones)}.")
    loss = record.settings["loss"]
    cost = _cost_name(loss) if isinstance(loss, Likelihood) else "chi²"
    measures = (
        f"{_counted(together.count, 'point')}, {_counted(together.dof, 'degree')} of "
        f"freedom, {cost} {together.chi_square:.5g} "
        f"(reduced {together.reduced_chi_square:.4g})"
    )
    return [*_wrapped(head), measures, "", *table, ""]


def _warned(record: Record) -> list[str]:
    """The warnings as lines, behind an empty one."""
    lines = [line for text in warnings(record) for line in _wrapped(text, "! ", "  ")]
    return ["", *lines] if lines else []


def _notes(record: Record) -> list[str]:
    """Lines about the data."""
    sentences = [*record.observed.notes, *_several.notes(record)]
    sentences += words_of(record.problem.prior)
    if record.together is not None:
        shared, number = record.together.shared, record.together.number
        sentences.append(
            f"One of {number} data sets that share {listed(list(shared))}: degrees of "
            "freedom, reduced chi² and all errors are those of the joint fit."
        )
    if record.has_errors_in_x:
        parts = record.sums_of_squares
        sentences.append(
            "x has errors (orthogonal distance regression): chi² "
            f"{parts.y:.5g} along y, {parts.x:.5g} along x."
        )
    return [line for note in sentences for line in _wrapped(note)]


# Tables


def _method(record: Record) -> list[str]:
    """Lines about a loss, and about several starts."""
    lines: list[str] = []
    loss, minima = record.method.loss, record.minima
    if isinstance(loss, Loss):
        lines.append(f"Loss: {type(loss).__name__}, scale {float(loss.scale):.6g}.")
    if minima is not None:
        ends = sum(count for _, count in minima)
        lines.append(
            f"Starts: {ends} ended at {len(minima)} distinct "
            f"{'minimum' if len(minima) == 1 else 'minima'}, "
            f"{minima[0][1] if minima else 0} of them at the best."
        )
    return lines


def _criteria(record: Record) -> list[str]:
    """Measures of the whole fit, two in a line."""
    g = record.goodness
    measures = [
        ("points", g.ndata, "varied parameters", len(record.varied)),
        ("degrees of freedom", g.dof, "evaluations", record.nfev),
        _of_cost(record),
        ("R²", g.r_squared, "log-likelihood", g.log_likelihood),
        ("AIC", g.aic, "AICc", g.aicc),
        ("BIC", g.bic, "optimality", record.numbers.optimality),
    ]
    return [
        f"  {a:<20}{_number(b):>14}    {c:<20}{_number(d):>14}"
        for a, b, c, d in measures
    ]


def _of_cost(record: Record) -> tuple[str, Any, str, Any]:
    """How large the cost is, beside what is expected of it."""
    g, expected = record.goodness, record.expected_deviance
    if not record.is_judged:
        return "chi-square", g.chi_square, "reduced chi-square", g.reduced_chi_square
    told = "not known" if expected is None else _expectation(expected)
    return _cost_name(record.observed.likelihood), g.chi_square, "expected", told


def _cost_name(likelihood: Likelihood | None) -> str:
    if likelihood is None:
        return "chi-square"
    return "deviance" if likelihood.is_deviance else "-2 log-likelihood"


def _expectation(expected: ExpectedDeviance) -> str:
    return f"{expected.value:.5g} ± {expected.deviation:.3g}"


def _starts_and_bounds(record: Record) -> list[str]:
    """Intervals, starts and bounds of the parameters that varied."""
    reach, width = (
        quantile(0.95, record.dof, record.absolute_sigma),
        _name_width(record),
    )
    lines = [f"{'':<{width}}{'95 % interval':>27}{'start':>14}{'bounds':>25}"]
    for p in record.params.values():
        if p.kind != "varied":
            continue
        low, high = p.value - reach * p.stderr, p.value + reach * p.stderr
        limits = f"{p.lower:.4g} .. {p.upper:.4g}"
        if math.isinf(p.lower) and math.isinf(p.upper):
            limits = "none"
        inside = f"{low:.6g} .. {high:.6g}"
        lines.append(f"{p.name:<{width}}{inside:>27}{p.start:>14.6g}{limits:>25}")
    return lines


def _correlations(record: Record) -> list[str]:
    """The strongest correlations, behind an empty line."""
    strong = [(k, v) for k, v in record.correlations.items() if abs(v) >= 0.1][:12]
    if not strong:
        return []
    lines = [f"  {a} and {b}: {value:+.3f}" for (a, b), value in strong]
    return ["", "correlations of at least 0.1, the strongest first", *lines]


def _measures(record: Record) -> str:
    g, expected = record.goodness, record.expected_deviance
    numbers = f"{_counted(g.ndata, 'point')}, {_counted(g.dof, 'degree')} of freedom, "
    if record.is_judged:
        numbers += f"{_cost_name(record.observed.likelihood)} {g.chi_square:.5g}"
        return numbers + (f" ({_expectation(expected)} expected)" if expected else "")
    return (
        f"{numbers}chi² {g.chi_square:.5g} "
        f"(reduced {g.reduced_chi_square:.4g}), R² {g.r_squared:.5g}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _name_width(record: Record) -> int:
    names = [*record.params, *record.derived, "parameter"]
    return min(max(map(len, names)) + 2, 34)


def _table(record: Record) -> list[str]:
    """Values and errors, in lines that fit the width."""
    width = _name_width(record)
    lines = [f"{'parameter':<{width}}{'value':>16}{'std. error':>14}{'':>9}"]
    lines += [_row(p, width) for p in record.params.values()]
    if record.derived:
        lines.append(f"{'derived':<{width}}")
        lines += [_row(p, width) for p in record.derived.values()]
    return [line.rstrip() for line in lines]


def _row(p: Parameter, width: int) -> str:
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


def _error(p: Parameter) -> str:
    if p.kind == "fixed":
        return "fixed"
    return f"{p.stderr:#.2g}" if math.isfinite(p.stderr) else "unknown"


def _relative(p: Parameter) -> str:
    if p.kind == "fixed" or not math.isfinite(p.stderr) or p.value == 0:
        return ""
    part = abs(p.stderr / p.value)
    return f"{part:.1%}" if part < 100 else ""


def _note(p: Parameter) -> str:
    notes = []
    if p.kind == "tied":
        notes.append("tied, outside its bounds" if p.is_outside else "tied")
    if p.at_bound:
        notes.append("at lower bound" if p.at_bound < 0 else "at upper bound")
    return ", ".join(notes)


def _number(value: Any) -> str:
    return str(value) if isinstance(value, (int, str)) else f"{value:.7g}"


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    if len(first) + len(text) <= WIDTH:
        return [first + text]
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest)


# Notebooks


def html(record: Record) -> str:
    """Tables for a notebook."""
    rows = []
    for p in [*record.params.values(), *record.derived.values()]:
        cells = (rounded(p.value, p.stderr), _error(p), _relative(p), _note(p))
        kind = "derived" if p.kind == "derived" else ""
        rows.append(
            f"<tr><th style='text-align:left'>{_html.escape(p.name)}</th>"
            + "".join(f"<td>{_html.escape(cell)}</td>" for cell in (*cells, kind))
            + "</tr>"
        )
    words = "".join(f"<li>{_html.escape(text)}</li>" for text in warnings(record))
    head = [headline(record), _measures(record), *_notes(record)]
    return (
        f"<p>{'<br>'.join(map(_html.escape, head))}</p>"
        "<table><thead><tr><th></th><th>value</th><th>std. error</th><th></th>"
        f"<th></th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        + (f"<ul>{words}</ul>" if words else "")
    )
