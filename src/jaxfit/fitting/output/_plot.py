"""Pictures of fits, by matplotlib, which is the extra `plot`.

Each function makes a figure and returns it; nothing is shown or saved.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfit.fitting.inference._intervals import SIGMAS
from jaxfit.fitting.inference._statistics import joint_threshold, quantile

if TYPE_CHECKING:
    from jaxfit.fitting._result import Fit

DATA = {"color": "0.35", "markersize": 3.5, "linewidth": 0.8}
CURVE, BAND = "C3", "C3"
PARTS = "C0", "C1", "C2", "C4", "C5", "C6", "C8", "C9"
FINE = 500  # points of a curve


def pyplot() -> Any:
    """matplotlib, or an error that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib, which is not installed: "
            'pip install "jaxfit[plot]", or pip install matplotlib'
        ) from error
    return plt


# One fit


def fit(
    self: "Fit",
    *,
    level: float = 0.95,
    components: bool = True,
    residuals: bool = True,
    xscale: str = "linear",
    xlabel: str = "x",
    ylabel: str = "y",
    title: str | None = None,
) -> Any:
    """Points with error bars, the curve and its band, components, and the residuals.

    For an image: data, model and residuals side by side.

    Args:
        level: of the confidence band.
        components: draw the parts of a sum.
        residuals: a panel of residuals below.
        xscale: "linear" or "log".
        xlabel, ylabel, title: texts.

    Returns:
        The matplotlib figure.
    """
    plt = pyplot()
    if isinstance(self.observed.data.x, (tuple, list)):
        return _image(self, plt, title)
    x, y, sigma, left = _points(self)
    panels = 2 if residuals else 1
    figure, axes = plt.subplots(
        *(panels, 1),
        sharex=True,
        squeeze=False,
        figsize=(7, 5 if residuals else 4),
        height_ratios=[3, 1][:panels],
        layout="constrained",
    )
    main = axes[0, 0]
    bar = {} if sigma is None else {"yerr": sigma, "elinewidth": 0.7}
    main.errorbar(x, y, fmt="o", label="data", zorder=2, **bar, **DATA)
    main.set_xscale(xscale)
    fine = fine_points(x, xscale)
    if components and len(self.model.parts) > 1:
        parts = zip(self.components(fine).items(), itertools.cycle(PARTS), strict=False)
        for (label, values), color in parts:
            main.plot(fine, values, "--", color=color, linewidth=1.2, label=label)
    band = self.confidence_band(fine, level)
    main.fill_between(
        *(fine, band.lower, band.upper),
        color=BAND,
        alpha=0.25,
        linewidth=0,
        label=f"{level:.0%} band",
    )
    main.plot(fine, band.value, color=CURVE, linewidth=1.6, label="fit", zorder=3)
    main.set_ylabel(ylabel)
    main.legend(frameon=False, fontsize="small")
    main.set_title(title if title is not None else self.model.label, fontsize="medium")
    if residuals:
        lower = axes[1, 0]
        lower.axhline(0, color="0.6", linewidth=0.8)
        lower.errorbar(x, left, fmt="o", **bar, **DATA)
        lower.set_ylabel("residual")
    axes[-1, 0].set_xlabel(xlabel)
    return figure


def residuals(self: "Fit", *, xlabel: str = "x") -> Any:
    """Standardised residuals against x, and against normal quantiles (Q-Q)."""
    plt = pyplot()
    left = self.observed.counted(self.standardized_residuals)[0]
    x = self.observed.data.x
    is_line = not isinstance(x, (tuple, list)) and np.shape(x) == np.shape(
        self.observed.data.y
    )
    place = self.observed.counted(x)[0] if is_line else np.arange(left.size)
    figure, (a, b) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    a.axhspan(-1, 1, color="0.92", zorder=0)
    a.axhline(0, color="0.6", linewidth=0.8)
    a.plot(place, left, "o", **DATA)
    a.set(xlabel=xlabel if is_line else "point", ylabel="standardised residual")
    import scipy.special

    part = (np.arange(left.size) + 0.5) / left.size
    expected = scipy.special.ndtri(part)
    ordered = np.sort(left)
    reach = 1.05 * max(np.abs(expected).max(), np.abs(ordered).max())
    b.plot([-reach, reach], [-reach, reach], color="0.6", linewidth=0.8)
    b.plot(expected, ordered, "o", **DATA)
    b.set(
        xlabel="normal quantile",
        ylabel="standardised residual",
        xlim=(-reach, reach),
        ylim=(-reach, reach),
    )
    b.set_aspect("equal")
    a.set_title("in order", fontsize="medium")
    b.set_title("Q-Q", fontsize="medium")
    return figure


def profile(self: "Fit", names: str | Sequence[str] | None = None) -> Any:
    """ζ against each parameter: straight where the errors are good intervals.

    The straight line is what the standard error says, and the marks are the ends of the
    intervals of one and two standard deviations, 68.3 % and 95.4 %.
    """
    plt = pyplot()
    profiles = self.profile(names)
    if not profiles:
        raise ValueError("No parameter of this fit is determined: nothing to draw.")
    figure, axes = grid_of(plt, len(profiles), 3.0, 2.6)
    gram = self.covariance
    for axis, one in zip(axes, profiles, strict=False):
        k = self.varied.index(one.name)
        value, error = self.numbers["x"][k], np.sqrt(gram[k, k])
        reach = np.array([one.values.min(), one.values.max()])
        axis.plot(reach, (reach - value) / error, color="0.6", linewidth=0.9)
        axis.plot(one.values, one.zeta, color=CURVE)
        for level, style in zip(SIGMAS, ("-", ":"), strict=True):
            t = quantile(level, self.dof, self.absolute_sigma)
            ends = np.interp([-t, t], one.zeta, one.values)
            axis.vlines(ends, -t, t, color="C0", linewidth=0.9, linestyle=style)
            axis.hlines([-t, t], *ends, color="C0", linewidth=0.9, linestyle=style)
        axis.set(xlabel=one.name, ylabel="ζ", ylim=(-3.4, 3.4))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useOffset=False)
        axis.locator_params(axis="x", nbins=4)
    return figure


def contour(
    self: "Fit",
    a: str,
    b: str,
    level: float | Sequence[float] = SIGMAS,
    *,
    axes: Any = None,
) -> Any:
    """Joint confidence regions of two parameters, by profile likelihood.

    The dashed ellipses are what the covariance says.

    Args:
        a, b: names of varied parameters.
        level: one probability or several.
        axes: matplotlib axes to draw into; None makes a figure.
    """
    plt = pyplot()
    found = self.contour(a, b, level)
    if axes is None:
        axes = plt.subplots(figsize=(4.6, 4), layout="constrained")[1]
    _regions(self, axes, found)
    axes.set(xlabel=a, ylabel=b)
    axes.legend(frameon=False, fontsize="small")
    return axes.figure


def corner(
    self: "Fit", names: str | Sequence[str] | None = None, number: int = 2000
) -> Any:
    """Bootstrap refits of each pair of parameters, with their histograms."""
    plt = pyplot()
    chosen = list(self.varied if names is None else names)
    samples = self.bootstrap(number, resample="case" if self.dof <= 0 else "residual")
    good = samples.status > 0
    columns = {name: samples[name][good] for name in chosen}
    limits = {name: np.quantile(v, [0.001, 0.999]) for name, v in columns.items()}
    n = len(chosen)
    size = max(4.0, 1.7 * n)
    figure, axes = plt.subplots(
        *(n, n), figsize=(size, size), squeeze=False, layout="constrained"
    )
    for i, down in enumerate(chosen):
        for j, across in enumerate(chosen):
            axis = axes[i, j]
            if j > i:
                axis.axis("off")
                continue
            if i == j:
                axis.hist(columns[down], 40, range=limits[down], color="C0", alpha=0.6)
                axis.axvline(self[down].value, color=CURVE, linewidth=1)
                axis.set_yticks([])
            else:
                axis.plot(columns[across], columns[down], ",", color="C0", alpha=0.5)
                axis.plot(self[across].value, self[down].value, "+", color=CURVE)
                axis.set_ylim(limits[down])
            axis.set_xlim(limits[across])
            axis.locator_params(nbins=3)
            axis.tick_params(labelsize="x-small")
            axis.ticklabel_format(style="sci", scilimits=(-3, 4), useOffset=False)
            if i == n - 1:
                axis.set_xlabel(across, fontsize="small")
            else:
                axis.set_xticklabels([])
            if j == 0 and i > 0:
                axis.set_ylabel(down, fontsize="small")
            elif i != j:
                axis.set_yticklabels([])
    return figure


def _points(fit: "Fit") -> list[Any]:
    """Points that count, in the order of x: x, y, sigma, residual."""
    seen = fit.observed
    if np.shape(seen.data.x) != np.shape(seen.data.y):
        raise ValueError(
            f"x has the shape {np.shape(seen.data.x)} and y {np.shape(seen.data.y)}; "
            "only curves and images are drawn."
        )
    x, y, sigma, left = seen.counted(
        seen.data.x, seen.data.y, seen.sigma, fit.residuals
    )
    order = np.argsort(x, kind="stable")
    return [None if v is None else v[order] for v in (x, y, sigma, left)]


def fine_points(x: np.ndarray, xscale: str) -> np.ndarray:
    """Evenly spaced points, for a smooth curve."""
    if xscale == "linear":
        return np.linspace(x.min(), x.max(), FINE)
    if xscale == "log" and x.max() > 0:
        return np.geomspace(x[x > 0].min(), x.max(), FINE)
    raise ValueError(
        f"xscale is {xscale!r}; give 'linear', or 'log' for data with positive x."
    )


def _image(fit: "Fit", plt, title):
    """Points, model and residuals of a function of two coordinates."""
    x = fit.observed.data.x
    shape = np.shape(fit.observed.data.y)
    panels = {"data": fit.observed.data.y, "fit": fit.best_fit}
    top = np.nanmax([np.nanmax(v) for v in panels.values()])
    low = np.nanmin([np.nanmin(v) for v in panels.values()])
    panels["residual"] = fit.residuals
    reach = np.nanmax(np.abs(fit.residuals)) or 1.0
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
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
    figure.suptitle(title if title is not None else fit.model.label, fontsize="medium")
    return figure


def _regions(fit: "Fit", axis, found) -> None:
    i, j = (fit.varied.index(name) for name in found.names)
    pair = fit.covariance[np.ix_([i, j], [i, j])]
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.linalg.cholesky(pair) @ np.stack([np.cos(angle), np.sin(angle)])
    center = fit.numbers["x"][[i, j]]
    for k, (level, line) in enumerate(zip(found.levels, found.points, strict=True)):
        closed = np.concatenate([line, line[:1]])
        axis.plot(*closed.T, color=CURVE, linewidth=1.4, label=f"{level:.1%}")
        reach = np.sqrt(joint_threshold(level, 2, fit.dof, fit.absolute_sigma))
        axis.plot(
            *(center[:, None] + reach * circle),
            "--",
            color="0.55",
            linewidth=0.9,
            label="ellipse" if k == 0 else None,
        )
        axis.lines[-2].set_alpha(1 if k == 0 else 0.6)
    axis.plot(*center, "+", color=CURVE)
    axis.ticklabel_format(style="sci", scilimits=(-3, 4), useOffset=False)


def grid_of(plt, number: int, width: float, height: float, columns: int = 4):
    """Axes for a number of panels, as a flat list; those left over are off."""
    rows = -(-number // columns)
    columns = -(-number // rows)
    figure, axes = plt.subplots(
        *(rows, columns),
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
    )
    flat = list(axes.flat)
    for axis in flat[number:]:
        axis.axis("off")
    return figure, flat
