"""Pictures of what is inferred: profiles, joint regions, refits; by matplotlib."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxfit.fitting._record import Record
from jaxfit.fitting.inference import _intervals
from jaxfit.fitting.inference._bootstrap import bootstrap
from jaxfit.fitting.inference._intervals import SIGMAS, Contour, Level
from jaxfit.fitting.inference._statistics import joint_threshold, quantile
from jaxfit.fitting.output._plot import CURVE, grid_of, pyplot


def profiles(record: Record, names: str | Iterable[str] | None) -> Any:
    """A figure of ζ against each parameter, see `Fit.plot_profile`."""
    plt = pyplot()
    traces = _intervals.profile(record, names)
    if not traces:
        raise ValueError("No parameter of this fit is determined: nothing to draw.")
    figure, axes = grid_of(plt, len(traces), 3.0, 2.6)
    for axis, trace in zip(axes, traces, strict=False):
        k = record.varied.index(trace.name)
        value, error = record.numbers.x[k], np.sqrt(record.covariance[k, k])
        reach = np.array([trace.values.min(), trace.values.max()])
        axis.plot(reach, (reach - value) / error, color="0.6", linewidth=0.9)
        axis.plot(trace.values, trace.zeta, color=CURVE)
        for level, style in zip(SIGMAS, ("-", ":"), strict=True):
            t = quantile(level, record.dof, record.absolute_sigma)
            ends = np.interp([-t, t], trace.zeta, trace.values)
            axis.vlines(ends, -t, t, color="C0", linewidth=0.9, linestyle=style)
            axis.hlines([-t, t], *ends, color="C0", linewidth=0.9, linestyle=style)
        axis.set(xlabel=trace.name, ylabel="ζ", ylim=(-3.4, 3.4))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useOffset=False)
        axis.locator_params(axis="x", nbins=4)
    return figure


def regions(record: Record, a: str, b: str, level: Level, axes: Any) -> Any:
    """A figure of joint regions of two parameters, see `Fit.plot_contour`."""
    plt = pyplot()
    edges = _intervals.contour(record, a, b, level)
    if axes is None:
        axes = plt.subplots(figsize=(4.6, 4), layout="constrained")[1]
    _draw_regions(record, axes, edges)
    axes.set(xlabel=a, ylabel=b)
    axes.legend(frameon=False, fontsize="small")
    return axes.figure


def corner(record: Record, names: str | Iterable[str] | None, number: int) -> Any:
    """A figure of the refits of each pair of parameters, see `Fit.plot_corner`."""
    plt = pyplot()
    chosen = list(record.varied if names is None else names)
    samples = bootstrap(record, number, resample="case" if record.dof <= 0 else None)
    good = samples.status > 0
    columns = {name: samples[name][good] for name in chosen}
    limits = {name: np.quantile(v, [0.001, 0.999]) for name, v in columns.items()}
    n = len(chosen)
    size = max(4.0, 1.7 * n)
    figure, axes = plt.subplots(
        nrows=n, ncols=n, figsize=(size, size), squeeze=False, layout="constrained"
    )
    for i, down in enumerate(chosen):
        for j, across in enumerate(chosen):
            axis = axes[i, j]
            if j > i:
                axis.axis("off")
                continue
            if i == j:
                axis.hist(columns[down], 40, range=limits[down], color="C0", alpha=0.6)
                axis.axvline(record[down].value, color=CURVE, linewidth=1)
                axis.set_yticks([])
            else:
                axis.plot(columns[across], columns[down], ",", color="C0", alpha=0.5)
                best = record[across].value, record[down].value
                axis.plot(*best, "+", color=CURVE)
                axis.set_ylim(limits[down])
            axis.set_xlim(limits[across])
            _label_corner(axis, across, down, is_lowest=i == n - 1, is_first=j == 0)
    return figure


def _label_corner(
    axis: Any, across: str, down: str, *, is_lowest: bool, is_first: bool
) -> None:
    """Names at the edge of the triangle, and no numbers within it."""
    axis.locator_params(nbins=3)
    axis.tick_params(labelsize="x-small")
    axis.ticklabel_format(style="sci", scilimits=(-3, 4), useOffset=False)
    if is_lowest:
        axis.set_xlabel(across, fontsize="small")
    else:
        axis.set_xticklabels([])
    if across == down:
        return
    if is_first:
        axis.set_ylabel(down, fontsize="small")
    else:
        axis.set_yticklabels([])


def _draw_regions(record: Record, axis: Any, edges: Contour) -> None:
    i, j = (record.varied.index(name) for name in edges.names)
    pair = record.covariance[np.ix_([i, j], [i, j])]
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.linalg.cholesky(pair) @ np.stack([np.cos(angle), np.sin(angle)])
    center = record.numbers.x[[i, j]]
    for k, (level, line) in enumerate(zip(edges.levels, edges.points, strict=True)):
        closed = np.concatenate([line, line[:1]])
        axis.plot(*closed.T, color=CURVE, linewidth=1.4, label=f"{level:.1%}")
        reach = np.sqrt(joint_threshold(level, 2, record.dof, record.absolute_sigma))
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
