"""Pictures of fits, by matplotlib, which is the extra `plot`.

Each function makes a figure and returns it; nothing is shown or saved.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxfit.fitting import _several
from jaxfit.fitting._bins import middles
from jaxfit.fitting._record import Record
from jaxfit.fitting.inference import _bands
from jaxfit.fitting.output._lines import Line, line_of

DATA = {"color": "0.35", "markersize": 3.5, "linewidth": 0.8}
CURVE = "C3"
PARTS = "C0", "C1", "C2", "C4", "C5", "C6", "C8", "C9"


def pyplot() -> Any:
    """matplotlib, or an error that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib, which is not installed: "
            'pip install "jaxfit-lsq[plot]", or pip install matplotlib'
        ) from error
    return plt


# One fit


def fit(
    record: Record,
    *,
    level: float,
    components: bool,
    residuals: bool,
    xscale: str,
    xlabel: str | None,
    ylabel: str,
    title: str | None,
    new_figure: Callable | None = None,
) -> Any:
    """A figure of the data and the curve, see `Fit.plot`.

    Args:
        new_figure: what makes the figure; None: pyplot, which then holds it.
    """
    make = pyplot().figure if new_figure is None else new_figure
    if is_image(record):
        return _image(record, make, title)
    series = _series(record)
    panels = 2 if residuals else 1
    figure = make(figsize=(7, 5 if residuals else 4), layout="constrained")
    axes = figure.subplots(
        nrows=panels, sharex=True, squeeze=False, height_ratios=[3, 1][:panels]
    )
    main = axes[0, 0]
    main.set_xscale(xscale)
    for one, part, points in series:
        style = points.bars | part.marks
        label = f"data{part.name}"
        main.errorbar(points.x, points.y, fmt="o", label=label, zorder=2, **style)
        line = line_of(one.model, one.observed.data.x, points.x, xscale)
        if components and len(one.model.parts) > 1:
            _draw_components(one, main, line, part)
        _draw_band(one, main, line, level, part)
    main.set_ylabel(ylabel)
    main.legend(frameon=False, fontsize="small")
    heading = title if title is not None else record.model.label
    main.set_title(heading, fontsize="medium")
    if residuals:
        lower = axes[1, 0]
        lower.axhline(0, color="0.6", linewidth=0.8)
        for _, part, points in series:
            style = points.residual_bars | part.marks
            lower.errorbar(points.x, points.residual, fmt="o", **style)
        lower.set_ylabel(_residual_label(record))
    axes[-1, 0].set_xlabel(record.observed.xlabel if xlabel is None else xlabel)
    return figure


def is_image(record: Record) -> bool:
    """Whether the data have several coordinates."""
    is_one = record.observed.shapes is None
    return is_one and isinstance(middles(record.model, record.observed.data.x), tuple)


def _residual_label(record: Record) -> str:
    """What the residuals below a curve are."""
    if record.has_errors_in_x:
        return "orthogonal\nresidual / σ"
    return (
        _near_normal(record).name.replace(" ", "\n") if record.is_judged else "residual"
    )


class _NearNormal(NamedTuple):
    """Residuals that are about normal, of the shape of y, and what they are."""

    name: str
    residuals: Any


def _near_normal(record: Record) -> _NearNormal:
    if record.has_errors_in_x:
        return _NearNormal("orthogonal residual", record.orthogonal_residuals)
    likelihood = record.observed.likelihood
    if likelihood is None:
        return _NearNormal("standardised residual", record.standardized_residuals)
    kind = "deviance" if likelihood.is_deviance else "Pearson"
    return _NearNormal(f"{kind} residual", record.deviance_residuals)


class Part(NamedTuple):
    """What is drawn of values: all, or the real or imaginary part."""

    name: str
    of: Callable
    data: str  # colors
    curve: str

    @property
    def marks(self) -> dict[str, Any]:
        """The style of its points."""
        return DATA | {"color": self.data}


ALL = Part("", np.asarray, DATA["color"], CURVE)
COMPLEX = [
    Part(", real", np.real, "C3", "C3"),
    Part(", imaginary", np.imag, "C0", "C0"),
]


def parts_of(y: np.ndarray) -> list[Part]:
    """What is drawn of data."""
    return COMPLEX if np.iscomplexobj(y) else [ALL]


class _Series(NamedTuple):
    """What is drawn in one color: a data set, or a part of it."""

    record: Record
    part: Part
    points: "_Points"


def _series(record: Record) -> list[_Series]:
    if record.observed.shapes is None:
        parts = parts_of(record.observed.y)
        return [_Series(record, part, _points(record, part)) for part in parts]
    series = []
    for k, one in enumerate(_several.views(record), start=1):
        color = f"C{(k - 1) % 10}"
        part = Part(f" {k}", np.asarray, color, color)
        series.append(_Series(one, part, _points(one, part)))
    return series


def _draw_components(record: Record, axis: Any, line: Line, part: Part) -> None:
    components = _bands.components(record, line.x)
    style = "--" if part.of is not np.imag else ":"
    for (label, values), color in zip(
        components.items(), itertools.cycle(PARTS), strict=False
    ):
        label = f"{label}{part.name}"
        color = color if part is ALL else part.curve
        corners = line.drawn(part.of(values))
        axis.plot(*corners, style, color=color, linewidth=1.2, label=label)


def draw_start(figure: Any, start: Record, xscale: str) -> None:
    """The curve where a fit begins, into the figure of `fit` with one x.

    Args:
        start: the fit, with the start in the place of its result.
    """
    for one, part, points in _series(start):
        line = line_of(one.model, one.observed.data.x, points.x, xscale)
        corners = line.drawn(part.of(_bands.predicted(one, line.x)))
        style = {"color": "0.1", "linewidth": 1.4, "label": f"start{part.name}"}
        figure.axes[0].plot(*corners, ":", zorder=2.5, **style)
    figure.axes[0].legend(frameon=False, fontsize="small")


def _draw_band(record: Record, axis: Any, line: Line, level: float, part: Part) -> None:
    value, lower, upper, _ = map(part.of, _bands.confidence(record, line.x, level))
    axis.fill_between(
        *line.drawn(lower),
        line.drawn(upper)[1],
        color=part.curve,
        alpha=0.25,
        linewidth=0,
        label=f"{level:.0%} band{part.name}",
    )
    label = f"fit{part.name}"
    corners = line.drawn(value)
    axis.plot(*corners, color=part.curve, linewidth=1.6, label=label, zorder=3)


def standardized_residuals(record: Record, xlabel: str | None) -> Any:
    """A figure of residuals in order and as a Q-Q plot, see `Fit.plot_residuals`."""
    import scipy.special

    plt = pyplot()
    observed = record.observed
    words, residuals = _near_normal(record)
    ratio = observed.counted(observed.split(residuals))
    x = middles(record.model, observed.data.x)
    is_tuple = isinstance(x, (tuple, list))
    is_line = not is_tuple and np.shape(x) == np.shape(observed.y)
    place = observed.counted(observed.of_each(x)) if is_line else np.arange(ratio.size)
    figure, (a, b) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    a.axhspan(-1, 1, color="0.92", zorder=0)
    a.axhline(0, color="0.6", linewidth=0.8)
    a.plot(place, ratio, "o", **DATA)
    xlabel = observed.xlabel if xlabel is None else xlabel
    a.set(xlabel=xlabel if is_line else "point", ylabel=words)
    part = (np.arange(ratio.size) + 0.5) / ratio.size
    expected = scipy.special.ndtri(part)
    ordered = np.sort(ratio)
    reach = 1.05 * max(np.abs(expected).max(), np.abs(ordered).max())
    b.plot([-reach, reach], [-reach, reach], color="0.6", linewidth=0.8)
    b.plot(expected, ordered, "o", **DATA)
    b.set(
        xlabel="normal quantile",
        ylabel=words,
        xlim=(-reach, reach),
        ylim=(-reach, reach),
    )
    b.set_aspect("equal")
    a.set_title("in order", fontsize="medium")
    b.set_title("Q-Q", fontsize="medium")
    return figure


class _Points(NamedTuple):
    """Points that count, in the order of x."""

    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray | None
    residual: np.ndarray
    sigma_x: np.ndarray | None  # None: x is exact, and residuals are those of y

    @property
    def bars(self) -> dict[str, Any]:
        """Error bars, as keywords of matplotlib's."""
        errors = {"xerr": self.sigma_x, "yerr": self.sigma}
        bars = {name: error for name, error in errors.items() if error is not None}
        return bars and {**bars, "elinewidth": 0.7}

    @property
    def residual_bars(self) -> dict[str, Any]:
        """Those of residuals: none where these are in units of their errors."""
        return self.bars if self.sigma_x is None else {}


def _points(record: Record, part: Part) -> _Points:
    observed = record.observed
    x, y = np.asarray(middles(record.model, observed.data.x)), observed.y
    if x.shape != y.shape:
        raise ValueError(
            f"x has the shape {x.shape} and y {y.shape}; only curves and images are "
            "drawn."
        )
    sigma, valid = (
        observed.of_points(observed.sigma),
        observed.of_points(observed.valid),
    )
    counts = np.flatnonzero(np.ones(y.shape) if valid is None else valid)
    order = counts[np.argsort(x.ravel()[counts], kind="stable")]
    has_errors, residual = record.has_errors_in_x, record.residuals
    if has_errors or record.is_judged:
        residual = _near_normal(record).residuals
    return _Points(
        x=x.ravel()[order],
        y=part.of(y).ravel()[order],
        sigma=None if sigma is None else sigma.ravel()[order],
        residual=part.of(residual).ravel()[order],
        sigma_x=observed.errors_in_x.ravel()[order] if has_errors else None,
    )


def _image(record: Record, new_figure: Callable, title: str | None) -> Any:
    """A figure of points, model and residuals of a function of two coordinates."""
    x = middles(record.model, record.observed.data.x)
    shape = np.shape(record.observed.y)
    if record.observed.is_complex:
        raise ValueError("Complex data over several coordinates are not drawn.")
    panels = {"data": record.observed.data.y, "fit": record.best_fit}
    top = np.nanmax([np.nanmax(v) for v in panels.values()])
    low = np.nanmin([np.nanmin(v) for v in panels.values()])
    panels["residual"] = record.residuals
    reach = np.nanmax(np.abs(record.residuals)) or 1.0
    figure = new_figure(figsize=(10, 3.3), layout="constrained")
    axes = figure.subplots(1, 3)
    across, down = (np.broadcast_to(axis, shape) for axis in x[:2])
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        color = {"cmap": "viridis", "vmin": low, "vmax": top}
        if name == "residual":
            color = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
        if len(shape) == 2:
            drawn = axis.pcolormesh(across, down, values, shading="nearest", **color)
        else:
            drawn = axis.scatter(across, down, c=values, marker="s", s=16, **color)
        axis.set_aspect("equal")
        axis.set_title(name, fontsize="medium")
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    heading = title if title is not None else record.model.label
    figure.suptitle(heading, fontsize="medium")
    return figure


class Grid(NamedTuple):
    """A figure and its panels."""

    figure: Any
    axes: list[Any]


def grid_of(
    plt: Any, number: int, width: float, height: float, columns: int = 4
) -> Grid:
    """A figure with a number of panels; those left over are off."""
    rows = -(-number // columns)
    columns = -(-number // rows)
    figure, axes = plt.subplots(
        nrows=rows,
        ncols=columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
    )
    flat = list(axes.flat)
    for axis in flat[number:]:
        axis.axis("off")
    return Grid(figure, flat)
