"""Where the curve of a fit is drawn: at fine points, or in steps over bins."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from jaxfit.fitting._bins import edges_of, is_binned
from jaxfit.models import Model

FINE = 500  # points of a curve


class Corners(NamedTuple):
    """The corners of a line."""

    x: np.ndarray
    y: np.ndarray


class Line(NamedTuple):
    """Where a model is asked for values, and how they are drawn."""

    x: np.ndarray  # points, or the edges of bins
    is_steps: bool

    def drawn(self, values: np.ndarray) -> Corners:
        """The line through values."""
        if not self.is_steps:
            return Corners(self.x, values)
        return Corners(np.repeat(self.x, 2)[1:-1], np.repeat(values, 2))


def line_of(
    model: Model, x: PyTree, places: Float[np.ndarray, " m"], xscale: str
) -> Line:
    """The line of a model.

    Args:
        x: the coordinates of the fit.
        places: where points are drawn.
    """
    if is_binned(model):
        return Line(edges_of(x)[0], is_steps=True)
    return Line(_fine(places, xscale), is_steps=False)


def _fine(x: Float[np.ndarray, " m"], xscale: str) -> Float[np.ndarray, " fine"]:
    """Evenly spaced points, for a smooth curve."""
    if xscale == "linear":
        return np.linspace(x.min(), x.max(), FINE)
    if xscale == "log" and x.max() > 0:
        return np.geomspace(x[x > 0].min(), x.max(), FINE)
    raise ValueError(
        f"xscale is {xscale!r}; give 'linear', or 'log' for data with positive x."
    )
