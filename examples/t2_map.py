"""Map T2 in a phantom of a head: one decay fitted in every voxel.

A spin-echo sequence takes 24 images, between which the signal of each voxel decays as
A exp(-t/T2) + C. `jaxfit.solve_batch` fits all voxels in one call, within bounds, and
keeps T2 with its standard error; that tells where the echo train is too short for what
it is to measure. Prints the statuses and the errors by tissue, and saves `t2_map.png`.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit

jax.config.update("jax_enable_x64", True)

SIZE = 160  # voxels along a side
ECHOES = 12.0 * jnp.arange(1, 25)  # ms
NOISE = 8.0  # standard deviation of the signal, known from the air around the head
OFFSET = 20.0  # signal that does not decay

# centre x, y, half axes a, b in units of half the image, angle in degrees; tissue
ELLIPSES = [
    ((0.00, 0.00, 0.72, 0.92, 0), "scalp"),
    ((0.00, 0.00, 0.66, 0.86, 0), "fluid"),
    ((0.00, 0.00, 0.62, 0.82, 0), "grey matter"),
    ((-0.26, 0.02, 0.25, 0.62, 4), "white matter"),
    ((0.26, 0.02, 0.25, 0.62, -4), "white matter"),
    ((-0.13, -0.05, 0.07, 0.28, 14), "fluid"),
    ((0.13, -0.05, 0.07, 0.28, -14), "fluid"),
    ((-0.20, 0.38, 0.09, 0.07, 0), "grey matter"),
    ((0.20, 0.38, 0.09, 0.07, 0), "grey matter"),
    ((0.30, -0.38, 0.10, 0.10, 0), "lesion"),
]
# amplitude and T2 in ms
TISSUES = {
    "scalp": (700.0, 45.0),
    "white matter": (800.0, 70.0),
    "grey matter": (900.0, 95.0),
    "lesion": (900.0, 150.0),
    "fluid": (1000.0, 400.0),
}


def decay(p):
    """Signal at the echo times."""
    return p["A"] * jnp.exp(-ECHOES / p["T2"]) + p["C"]


def residual(p, signal):
    """Model minus observation in units of the noise, for one voxel."""
    return (decay(p) - signal) / NOISE


def keep(fit):
    """Of each fit: T2, its standard error (of known noise), status, chi squared."""
    chi2 = 2 * fit.cost / (fit.count - 3)
    return fit.x["T2"], fit.stderr(absolute=True)["T2"], fit.status, chi2


def simulate(rng):
    """Tissue of each voxel (SIZE, SIZE), true T2, and the signal (SIZE, SIZE, echo)."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    tissue = np.full((SIZE, SIZE), "air", dtype="<U12")
    for (x0, y0, a, b, degrees), name in ELLIPSES:
        turn = np.exp(-1j * np.radians(degrees)) * (x - x0 + 1j * (y - y0))
        tissue[(turn.real / a) ** 2 + (turn.imag / b) ** 2 < 1] = name
    amplitude, t2 = np.zeros((SIZE, SIZE)), np.full((SIZE, SIZE), np.nan)
    for name, (tissue_amplitude, tissue_t2) in TISSUES.items():
        here = tissue == name
        coil = 1 - 0.25 * (x[here] ** 2 + y[here] ** 2)  # less signal far from the coil
        amplitude[here] = tissue_amplitude * coil
        t2[here] = tissue_t2 * (1 + 0.05 * np.sin(9 * x[here]) * np.cos(7 * y[here]))
    inside = tissue != "air"
    p = {"A": amplitude[inside], "T2": t2[inside], "C": np.full(inside.sum(), OFFSET)}
    signal = np.zeros((SIZE, SIZE, len(ECHOES)))
    signal[inside] = jax.vmap(decay)(p)
    return tissue, t2, signal + NOISE * rng.standard_normal(signal.shape)


def fit_all(signal):
    """Fit the decays (voxel, echo); each starts from its own first and last echo."""
    start = {
        "A": np.maximum(signal[:, 0] - signal[:, -1], NOISE),
        "T2": np.full(len(signal), 100.0),
        "C": np.maximum(signal[:, -1], 0),
    }
    lower, upper = {"A": 0.0, "T2": 5.0, "C": 0.0}, {"A": 1e4, "T2": 3e3, "C": 1e3}
    start = {name: np.clip(start[name], lower[name], upper[name]) for name in start}
    fits = jaxfit.solve_batch(residual, start, signal, bounds=(lower, upper), keep=keep)
    return jax.tree.map(np.asarray, fits)


def print_table(tissue, truth, t2, stderr, status):
    """How the fits ended, and how good they are by tissue."""
    for value, count in zip(*np.unique(status, return_counts=True), strict=True):
        print(f"{count:6} {jaxfit.Status(value).name}")
    print(f"\n{'':13}{'voxels':>7}{'T2 (ms)':>9}{'error':>8}{'within 1':>10}{'2':>7}")
    for name in TISSUES:
        here = tissue == name
        z = np.abs(t2[here] - truth[here]) / stderr[here]
        print(
            f"{name:13}{here.sum():7}{np.median(t2[here]):9.1f}"
            f"{np.median(stderr[here]):8.2f}{np.mean(z < 1):10.1%}{np.mean(z < 2):7.1%}"
        )
    print("(medians; within 1 and 2 standard errors of the truth: normal 68.3%, 95.4%)")


def draw(truth, t2, stderr, chi2, failed):
    """Truth, fit, its standard error and the quality of the fit, as `t2_map.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    times = LogNorm(30, 600)
    panels = (
        ("True T2", truth, "T2 (ms)", {"norm": times, "cmap": "viridis"}),
        ("Fitted T2", t2, "T2 (ms)", {"norm": times, "cmap": "viridis"}),
        ("Standard error of T2", stderr, "ms", {"norm": LogNorm(0.5, 100)}),
        ("Misfit", chi2, "chi squared per degree of freedom", {"vmin": 0, "vmax": 2}),
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")
    for ax, (title, values, label, colours) in zip(axes.flat, panels, strict=True):
        options = {"cmap": "magma", **colours}
        image = ax.imshow(values, interpolation="nearest", **options)
        bar = figure.colorbar(image, ax=ax, label=label, extend="max")
        if "norm" in colours:
            low, high = image.get_clim()
            ticks = [t for t in (1, 3, 10, 30, 50, 100, 200, 400) if low <= t <= high]
            bar.set_ticks(ticks, labels=map(str, ticks))
            bar.minorticks_off()
        ax.set(title=title, xlabel="x (voxels)", ylabel="y (voxels)", facecolor="0.85")
    row, column = np.nonzero(failed)
    axes[1, 1].plot(column, row, "x", color="tab:cyan", label="not converged")
    axes[1, 1].set_title(f"Misfit; not converged: {len(row)} (crosses)")
    figure.savefig("t2_map.png", dpi=120)
    print("Saved t2_map.png")


def main():
    """Simulate, fit the voxels that hold signal, print, draw."""
    tissue, truth, images = simulate(np.random.default_rng(1))
    mask = images[:, :, 0] > 10 * NOISE  # air is not fitted
    fit_all(images[mask])  # compiles
    began = time.perf_counter()
    fits = fit_all(images[mask])
    seconds = time.perf_counter() - began
    print(f"{mask.sum()} voxels fitted, {seconds / mask.sum() * 1e6:.1f} µs per voxel")

    t2, stderr, status, chi2 = (np.full(mask.shape, np.nan) for _ in fits)
    for map_, values in zip((t2, stderr, status, chi2), fits, strict=True):
        map_[mask] = values
    print_table(tissue, truth, t2, stderr, fits[2])
    draw(truth, t2, stderr, chi2, mask & ~(status > 0))


if __name__ == "__main__":
    main()
