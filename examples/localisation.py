"""Localisation microscopy: find and fit the molecules of a short simulated movie.

Filaments with two walls, 2 pixels apart, carry molecules of which a few light up in
each frame of 512 x 512 pixels. The image of one is a spot in which the walls blur; its
centre is known much better. `jaxfit.solve_batch` fits a 2-D Gaussian to 11 x 11 pixels
around every spot that stands alone, and says how uncertain each position is. Prints how
far these uncertainties can be trusted, and saves `localisation.png`.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage, spatial

import jaxfit

jax.config.update("jax_enable_x64", True)

FRAMES, SIZE = 60, 512  # and pixels along a side of each frame
FILAMENTS, SPACING = 7, 20  # and pixels between neighbours that shine in one frame
SIGMA, PHOTONS, BACKGROUND, OFFSET = 1.3, 2000.0, 12.0, 100.0
HALF = 5  # a window has 2 HALF + 1 pixels along a side
PIXEL = jnp.arange(-HALF, HALF + 1.0)  # from the centre of the window


def spot(p):
    """Photons expected in the pixels of a window: a molecule and the background."""
    gauss_x = jnp.exp(-0.5 * ((PIXEL - p["x"]) / p["sigma"]) ** 2)
    gauss_y = jnp.exp(-0.5 * ((PIXEL - p["y"]) / p["sigma"]) ** 2)
    peak = p["photons"] / (2 * jnp.pi * p["sigma"] ** 2)
    return peak * gauss_y[:, None] * gauss_x + p["background"]


def residual(p, window):
    """Model minus observation, for one window."""
    return spot(p) - window


def keep(fit):
    """Of each fit: values, errors (the weights are 1/variance), status, chi squared."""
    chi2 = 2 * fit.cost / (fit.count - 5)
    return fit.x, fit.stderr(absolute=True), fit.status, chi2


def simulate(rng):
    """The movie, and (frame, y, x) of every molecule that shone."""
    steps = np.arange(1, SIZE // SPACING)
    shape = FRAMES, FILAMENTS, len(steps)
    along = SPACING * (
        steps + rng.uniform(-0.2, 0.2, shape) + rng.random((FRAMES, 1, 1)) - 0.5
    )
    filament = np.broadcast_to(np.arange(FILAMENTS)[:, None], shape)
    frame = np.broadcast_to(np.arange(FRAMES)[:, None, None], shape).ravel()
    phase = 2 * np.pi * along / SIZE + 2 * filament
    slope = 22 * 2 * np.pi / SIZE * np.cos(phase)
    normal = np.stack([np.ones(shape), -slope]) / np.hypot(1, slope)
    middle = np.stack([SIZE * (filament + 1) / 8 + 22 * np.sin(phase), along])
    y, x = middle + rng.choice([-1.0, 1.0], shape) * normal
    turned = filament % 3 == 2  # these cross the others
    y, x = np.where(turned, x, y).ravel(), np.where(turned, y, x).ravel()

    reach = np.arange(-8, 9)
    rows = np.rint(y).astype(int)[:, None, None] + reach[:, None]
    columns = np.rint(x).astype(int)[:, None, None] + reach
    distance2 = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2
    peak = rng.gamma(8.0, PHOTONS / 8, (y.size, 1, 1)) / (2 * np.pi * SIGMA**2)
    light = peak * np.exp(-0.5 * distance2 / SIGMA**2)
    expected = np.full((FRAMES, SIZE, SIZE), BACKGROUND)
    np.add.at(expected, (frame[:, None, None], rows, columns), light)
    return OFFSET + rng.poisson(expected), np.stack([frame, y, x], axis=1)


def find(movie):
    """(frame, row, column) of the bright local maxima that stand alone."""
    smooth = ndimage.gaussian_filter(movie, (0, 1.0, 1.0))
    peaks = smooth == ndimage.maximum_filter(smooth, (1, 5, 5))
    peaks &= smooth > BACKGROUND + 30
    found = np.argwhere(peaks)
    inside = np.all((found[:, 1:] >= HALF) & (found[:, 1:] < SIZE - HALF), axis=1)
    far = found * [10 * SIZE, 1, 1]  # no neighbours in other frames
    nearest = spatial.cKDTree(far).query(far, k=2)[0][:, 1]
    return found[inside & (nearest > 2 * HALF)]


def fit_all(windows, expected):
    """Fit all windows; each Poisson count has the variance `expected`."""
    background = np.median(windows, axis=(1, 2))
    start = {
        "x": np.zeros(len(windows)),
        "y": np.zeros(len(windows)),
        "sigma": np.full(len(windows), 1.5),
        "photons": np.sum(windows - background[:, None, None], axis=(1, 2)).clip(50),
        "background": background.clip(1),
    }
    lower = {"x": -3.0, "y": -3.0, "sigma": 0.5, "photons": 0.0, "background": 0.0}
    upper = {"x": 3.0, "y": 3.0, "sigma": 4.0, "photons": 1e6, "background": 1e4}
    fits = jaxfit.solve_batch(
        residual,
        start,
        windows,
        bounds=(lower, upper),
        weights=1 / np.maximum(expected, 1.0),
        keep=keep,
    )
    return jax.tree.map(np.asarray, fits)


def localise(movie):
    """(frame, y, x) of the molecules found and well fitted, and errors of y and x."""
    found = find(movie)
    frame, row, column = found.T[:, :, None, None]
    grid = np.arange(-HALF, HALF + 1)
    windows = movie[frame, row + grid[:, None], column + grid]
    # Counts as their own variance favour the low ones; the first fit knows better.
    first, *_ = fit_all(windows, expected=windows)
    expected = jax.vmap(spot)(first)
    began = time.perf_counter()
    p, stderr, status, chi2 = fit_all(windows, np.asarray(expected))
    seconds = time.perf_counter() - began
    print(f"{len(found)} spots fitted, {seconds / len(found) * 1e6:.0f} µs per fit")
    for value, count in zip(*np.unique(status, return_counts=True), strict=True):
        print(f"{count:6} {jaxfit.Status(value).name}")

    # two molecules in one window are no Gaussian of the microscope's width
    good = (status > 0) & (chi2 < 1.5) & (np.abs(p["sigma"] - SIGMA) < 0.3)
    print(f"{good.sum()} of them look like one molecule (chi squared, width)")
    position = found + np.stack([0 * p["y"], p["y"], p["x"]], axis=1)
    return position[good], np.stack([stderr["y"], stderr["x"]], axis=1)[good]


def compare(position, stderr, truth):
    """(found - truth) / stderr of all coordinates, after some numbers in print."""
    far = [10 * SIZE, 1, 1]  # no neighbours in other frames
    _, nearest = spatial.cKDTree(truth * far).query(position * far)
    z = ((position - truth[nearest])[:, 1:] / stderr).ravel()
    print(f"Median standard error of a position: {np.median(stderr):.3f} pixels")
    for limit, normal in (1, 0.683), (2, 0.954):
        inside = np.mean(np.abs(z) < limit)
        print(f"Within {limit} of the truth: {inside:.1%} (normal: {normal:.1%})")
    return z


def render(position, corner, side, scale=10):
    """Positions per square pixel, `scale` picture elements for one pixel."""
    edges = [np.linspace(low, low + side, side * scale + 1) for low in corner - 0.5]
    counts, *_ = np.histogram2d(position[:, 1], position[:, 2], edges)
    return ndimage.gaussian_filter(counts * scale**2, 0.15 * scale)


def draw(movie, position, z):
    """A frame, the sum of all, the positions, and their errors: `localisation.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    corner, side = np.array([65, 150]), 50
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
    frame, sum_, sharp, errors = axes.flat

    image = frame.imshow(movie[0], cmap="gray", vmax=np.percentile(movie[0], 99.8))
    figure.colorbar(image, ax=frame, label="photons")
    first = position[position[:, 0] == 0]
    frame.plot(first[:, 2], first[:, 1], "o", ms=7, mfc="none", mec="tab:orange")
    box = plt.Rectangle(corner[::-1], side, side, fill=False, ec="tab:cyan", lw=1.5)
    frame.add_patch(box)
    frame.set_title(f"One of {FRAMES} frames, {len(first)} positions found")

    low, high = corner - 0.5, corner + side - 0.5
    extent = low[1], high[1], high[0], low[0]
    part = movie.mean(axis=0)[corner[0] :, corner[1] :][:side, :side]
    image = sum_.imshow(part, cmap="inferno", extent=extent)
    figure.colorbar(image, ax=sum_, label="photons per frame")
    sum_.set_title("The blue square: mean of all frames")

    part = render(position, corner, side)
    top = np.percentile(part[part > 1], 90)
    image = sharp.imshow(part, cmap="inferno", extent=extent, vmax=top)
    figure.colorbar(image, ax=sharp, label="molecules per square pixel")
    sharp.set_title("The same square from the fitted positions")
    for panel in frame, sum_, sharp:
        panel.set(xlabel="x (pixels)", ylabel="y (pixels)")

    grid = np.linspace(-5, 5, 201)
    normal = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    bins = np.linspace(-5, 5, 51)
    errors.hist(
        z.clip(-5, 5),
        bins,
        density=True,
        color="0.75",
        label="coordinates (beyond 5: at 5)",
    )
    errors.plot(grid, normal, color="tab:blue", label="unit normal")
    errors.set(xlabel="(position - truth) / standard error", ylabel="density")
    errors.set_ylim(0, 0.5)
    errors.set_title("Are the standard errors right?")
    errors.legend(frameon=False)
    figure.savefig("localisation.png", dpi=120)
    print("Saved localisation.png")


def main():
    """Simulate, find, fit, compare with the truth, draw."""
    movie, truth = simulate(np.random.default_rng(1))
    movie = movie - OFFSET  # in photons; a real camera's offset is measured in the dark
    position, stderr = localise(movie)
    z = compare(position, stderr, truth)
    draw(movie, position, z)


if __name__ == "__main__":
    main()
