"""Spots in images, of the coordinates x = (columns, rows)."""

import math
from typing import NamedTuple

import numpy as np

from jaxfit._numpy.either import Coordinates, Real, Reals, Scalar, Values, xp
from jaxfit.models._model import POSITIVE, Candidates, Model
from jaxfit.models._peaks import FWHM
from jaxfit.models._projection import extent, grid


class _Spot(NamedTuple):
    """The brightest (or darkest) spot of an image."""

    center_x: Scalar
    center_y: Scalar
    area: Scalar  # above half of it


def _brightest(x: tuple[Values, Values], y: Values) -> _Spot:
    """The spot about the pixel that is farthest from zero."""
    across, down = x
    m = len(y)
    area = extent(across).span * extent(down).span / m
    top = xp.argmax(xp.abs(y))
    upright = y * xp.sign(y[top])

    # the centre of mass of the pixels about the brightest
    reach = 1.5 * xp.sqrt(area)
    near = (xp.abs(across - across[top]) < reach) & (xp.abs(down - down[top]) < reach)
    weight = xp.where(near, xp.maximum(upright, 0), 0)
    total = xp.maximum(xp.sum(weight), 1e-300)
    above = xp.sum(upright > 0.5 * upright[top]).astype(y.dtype)
    return _Spot(
        center_x=xp.sum(weight * across) / total,
        center_y=xp.sum(weight * down) / total,
        area=xp.maximum(area * above, area),
    )


class Gaussian2D(Model):
    """height exp(-((x - center_x)² + (y - center_y)²) / (2 width²)): a round spot.

    Parameters: `height`, the value at the centre; `center_x`, `center_y`; `width`, the
    standard deviation, in units of the coordinates.
    Derived: `fwhm`, the full width at half maximum, and `volume`, the spot's sum.
    """

    linear = ("height",)
    limits = {"width": POSITIVE}
    is_peak = True

    def function(
        self, x: Coordinates, height: Real, center_x: Real, center_y: Real, width: Real
    ) -> Real:
        squared = (x[0] - center_x) ** 2 + (x[1] - center_y) ** 2
        return height * xp.exp(-0.5 * squared / width**2)

    def candidates(self, x: tuple[Values, Values], y: Values) -> Candidates:
        spot = _brightest(x, y)
        width = xp.sqrt(spot.area / math.pi) * 2 / FWHM * np.array([0.4, 0.7, 1.0, 1.6])
        return {
            "center_x": xp.full(4, spot.center_x),
            "center_y": xp.full(4, spot.center_y),
            "width": width,
        }

    def quantities(
        self, height: Real, center_x: Real, center_y: Real, width: Real
    ) -> Reals:
        return {"fwhm": FWHM * width, "volume": 2 * math.pi * height * width**2}


class EllipticGaussian2D(Model):
    """A Gaussian spot with two widths, turned by an angle.

    Parameters: `height`, the value at the centre; `center_x`, `center_y`; `width_x`,
    `width_y`, the standard deviations along the axes, in units of the coordinates;
    `angle`, by which the axes are turned from x towards y, in radians.
    Derived: `fwhm_x`, `fwhm_y`, and `volume`, the spot's sum.
    """

    linear = ("height",)
    limits = {"width_x": POSITIVE, "width_y": POSITIVE}
    is_peak = True

    def function(
        self,
        x: Coordinates,
        height: Real,
        center_x: Real,
        center_y: Real,
        width_x: Real,
        width_y: Real,
        angle: Real,
    ) -> Real:
        right, down = x[0] - center_x, x[1] - center_y
        cosine, sine = xp.cos(angle), xp.sin(angle)
        along = (cosine * right + sine * down) / width_x
        across = (cosine * down - sine * right) / width_y
        return height * xp.exp(-0.5 * (along**2 + across**2))

    def candidates(self, x: tuple[Values, Values], y: Values) -> Candidates:
        spot = _brightest(x, y)
        width = xp.sqrt(spot.area / math.pi) * 2 / FWHM
        shapes = grid(
            size=width * np.array([0.6, 1.0, 1.5]),
            shape=np.array([1.25, 2.0]),
            angle=np.arange(6) * (math.pi / 6) + 0.1,
        )
        return {
            "center_x": xp.full_like(shapes["size"], spot.center_x),
            "center_y": xp.full_like(shapes["size"], spot.center_y),
            "width_x": shapes["size"] * xp.sqrt(shapes["shape"]),
            "width_y": shapes["size"] / xp.sqrt(shapes["shape"]),
            "angle": shapes["angle"],
        }

    def quantities(
        self,
        height: Real,
        center_x: Real,
        center_y: Real,
        width_x: Real,
        width_y: Real,
        angle: Real,
    ) -> Reals:
        return {
            "fwhm_x": FWHM * width_x,
            "fwhm_y": FWHM * width_y,
            "volume": 2 * math.pi * height * width_x * width_y,
        }
