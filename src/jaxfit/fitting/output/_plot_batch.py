"""Pictures of many fits: maps, how they ended, and some of the curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfit._core.certificate import Status
from jaxfit.fitting.output._plot import CURVE, DATA, fine_points, grid_of, pyplot

if TYPE_CHECKING:
    from jaxfit.fitting._batch_result import BatchFit


def maps(
    self: "BatchFit", names: Sequence[str] | None = None, *, errors: bool = False
) -> Any:
    """A map of each parameter (for one leading dimension a line), and of the status.

    Args:
        names: parameters and derived quantities; None: the parameters.
        errors: draw their standard errors in their place.
    """
    plt = pyplot()
    chosen = list(self.names if names is None else names)
    source = self.errors | self.derived_errors if errors else self.values | self.derived
    figure, axes = grid_of(plt, len(chosen) + 1, 3.1, 2.7, columns=3)
    for axis, name in zip(axes, chosen, strict=False):
        values = np.where(self.success, source[name], np.nan)
        _map(figure, axis, values, f"{name}, standard error" if errors else name)
    _status(figure, axes[len(chosen)], self)
    return figure


def status(self: "BatchFit") -> Any:
    """A map of how the fits ended."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
    _status(figure, axis, self)
    return figure


def several(
    self: "BatchFit", indices: Sequence[Any] | None = None, *, xscale: str = "linear"
) -> Any:
    """Points and curves of some fits: by default nine, evenly chosen.

    Args:
        indices: of the leading dimensions.
        xscale: "linear" or "log".
    """
    plt = pyplot()
    if not isinstance(self.x, np.ndarray) or self.x.ndim != 1:
        raise ValueError(
            "Only curves of one coordinate are drawn; see plot() for maps."
        )
    total = int(np.prod(self.shape))
    if indices is None:
        flat = np.unique(np.linspace(0, total - 1, 9).astype(int))
        indices = [np.unravel_index(k, self.shape) for k in flat]
    indices = [index if isinstance(index, tuple) else (index,) for index in indices]
    order = np.argsort(self.x)
    fine = fine_points(self.x, xscale)
    curves = self.predict(fine)
    figure, axes = grid_of(plt, len(indices), 2.8, 2.1, columns=3)
    for axis, index in zip(axes, indices, strict=False):
        axis.plot(self.x[order], self.y[index][order], "o", **DATA)
        axis.plot(fine, curves[index], color=CURVE)
        axis.set_xscale(xscale)
        label = ", ".join(str(int(i)) for i in index)
        axis.set_title(label, fontsize="small")
        axis.tick_params(labelsize="x-small")
    return figure


def _map(figure, axis, values: np.ndarray, title: str) -> None:
    axis.set_title(title, fontsize="medium")
    if values.ndim == 1:
        axis.plot(values, ".", **DATA)
        return
    image = values.reshape(-1, values.shape[-1])
    seen = image[np.isfinite(image)]
    low, high = np.quantile(seen, [0.01, 0.99]) if seen.size else (0, 1)
    drawn = axis.imshow(image, vmin=low, vmax=high, interpolation="nearest")
    figure.colorbar(drawn, ax=axis, shrink=0.85, extend="both")


def _status(figure, axis, batch: "BatchFit") -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    known = [s for s in Status if s in np.unique(batch.status)]
    index = np.searchsorted(sorted(known), batch.status)
    colors = {s: "0.85" if s > 0 else f"C{3 + k}" for k, s in enumerate(known)}
    good = [s for s in sorted(known) if s > 0]
    for k, s in enumerate(good):
        colors[s] = str(0.72 + 0.2 * k / max(len(good), 1))
    palette = ListedColormap([colors[s] for s in sorted(known)])
    axis.set_title("status", fontsize="medium")
    if index.ndim == 1:
        axis.plot(batch.status, ".", **DATA)
        return
    norm = BoundaryNorm(np.arange(len(known) + 1) - 0.5, len(known))
    image = index.reshape(-1, index.shape[-1])
    drawn = axis.imshow(image, cmap=palette, norm=norm, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axis, ticks=range(len(known)), shrink=0.85)
    bar.ax.set_yticklabels([s.name.lower() for s in sorted(known)], fontsize="x-small")
