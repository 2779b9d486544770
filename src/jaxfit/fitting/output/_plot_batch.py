"""Pictures of many fits: maps, how they ended, and some of the curves."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxfit._core.certificate import Status
from jaxfit.fitting._batch_record import BatchRecord
from jaxfit.fitting._bins import middles
from jaxfit.fitting.inference import _bands
from jaxfit.fitting.output._lines import line_of
from jaxfit.fitting.output._plot import (
    DATA,
    grid_of,
    parts_of,
    pyplot,
)


def maps(record: BatchRecord, names: Iterable[str] | None, errors: bool) -> Any:
    """A figure of maps, see `BatchFit.plot`."""
    plt = pyplot()
    chosen = list(record.names) if names is None else list(names)
    if names is None:
        chosen = [name for name in chosen if name not in record.single]
    source = record.values | record.derived
    if errors:
        source = record.errors | record.derived_errors
    grid = grid_of(plt, len(chosen) + 1, 3.1, 2.7, columns=3)
    for axis, name in zip(grid.axes, chosen, strict=False):
        values = np.where(
            record.success, np.broadcast_to(source[name], record.shape), np.nan
        )
        title = f"{name}, standard error" if errors else name
        _draw_map(grid.figure, axis, values, title)
    _draw_status(grid.figure, grid.axes[len(chosen)], record)
    return grid.figure


def status(record: BatchRecord) -> Any:
    """A figure of how the fits ended, see `BatchFit.plot_status`."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
    _draw_status(figure, axis, record)
    return figure


def several(record: BatchRecord, indices: Iterable[Any] | None, xscale: str) -> Any:
    """A figure of some fits, see `BatchFit.plot_fits`."""
    plt, x = pyplot(), middles(record.model, record.x)
    if not isinstance(x, np.ndarray) or x.ndim != 1:
        raise ValueError(
            "Only curves of one coordinate are drawn; see plot() for maps."
        )
    total = int(np.prod(record.shape))
    if indices is None:
        flat = np.unique(np.linspace(0, total - 1, 9).astype(int))
        indices = [np.unravel_index(k, record.shape) for k in flat]
    indices = [index if isinstance(index, tuple) else (index,) for index in indices]
    line = line_of(record.model, record.x, x, xscale)
    order, curves = np.argsort(x), _bands.curves(record, line.x)
    grid = grid_of(plt, len(indices), 2.8, 2.1, columns=3)
    for axis, index in zip(grid.axes, indices, strict=False):
        for part in parts_of(record.y):
            values = part.of(record.y[index])
            axis.plot(x[order], values[order], "o", **part.marks)
            axis.plot(*line.drawn(part.of(curves[index])), color=part.curve)
        axis.set_xscale(xscale)
        label = ", ".join(str(int(i)) for i in index)
        axis.set_title(label, fontsize="small")
        axis.tick_params(labelsize="x-small")
    return grid.figure


def _draw_map(
    figure: Any, axis: Any, values: Float[np.ndarray, "..."], title: str
) -> None:
    axis.set_title(title, fontsize="medium")
    if values.ndim == 1:
        axis.plot(values, ".", **DATA)
        return
    image = values.reshape(-1, values.shape[-1])
    seen = image[np.isfinite(image)]
    low, high = np.quantile(seen, [0.01, 0.99]) if seen.size else (0, 1)
    drawn = axis.imshow(image, vmin=low, vmax=high, interpolation="nearest")
    figure.colorbar(drawn, ax=axis, shrink=0.85, extend="both")


def _draw_status(figure: Any, axis: Any, record: BatchRecord) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    axis.set_title("status", fontsize="medium")
    if record.status.ndim == 1:
        axis.plot(record.status, ".", **DATA)
        return
    present = np.unique(record.status)
    members = sorted(s for s in Status if s in present)
    index = np.searchsorted(members, record.status)
    colors = {s: f"C{3 + k}" for k, s in enumerate(s for s in Status if s in present)}
    good = [s for s in members if s > 0]
    for k, s in enumerate(good):
        colors[s] = str(0.72 + 0.2 * k / max(len(good), 1))
    palette = ListedColormap([colors[s] for s in members])
    norm = BoundaryNorm(np.arange(len(members) + 1) - 0.5, len(members))
    image = index.reshape(-1, index.shape[-1])
    drawn = axis.imshow(image, cmap=palette, norm=norm, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axis, ticks=range(len(members)), shrink=0.85)
    bar.ax.set_yticklabels([s.name.lower() for s in members], fontsize="x-small")
