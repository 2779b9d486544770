"""Single molecules in low light: maximum likelihood beside least squares.

A molecule sends a few photons to 11 x 11 pixels, and its background about one photon to
every second of them. Each spot has five parameters: photons, position, width and
background. Poisson's likelihood is what counts obey; least squares takes all pixels as
equally uncertain, or believes the counts of dim pixels too much where it is weighted by
their roots. 2000 spots of each brightness are fitted all three ways. Prints the
precision beside the bound of Cramér and Rao, and saves `localisation_low_light.png`.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

import jaxfit
from jaxfit import losses

jax.config.update("jax_enable_x64", True)

SPOTS = 2000  # of each brightness
PHOTONS = np.array([25, 35, 50, 70, 100, 150, 250, 400, 650, 1000])
SHOWN = 50, 100, 400  # photons of the spots in the picture
CLOUD = 100  # photons of the errors in the picture
WIDTH, BACKGROUND = 1.3, 0.5  # pixels, and photons in a pixel
NANOMETRES = 100  # in a pixel
SIDE = 11
PIXEL = jnp.arange(SIDE) - SIDE // 2.0
LOWER = {"photons": 0.0, "x": -4.0, "y": -4.0, "width": 0.5, "background": 0.0}
UPPER = {"photons": 1e6, "x": 4.0, "y": 4.0, "width": 4.0, "background": 1e3}
WAYS = {
    "maximum likelihood": "tab:blue",
    "least squares": "tab:orange",
    "weights 1/max(y, 1)": "tab:red",
}


def along(center, width):
    """The part of a spot's light in each pixel of an axis."""
    low, high = (PIXEL - center - 0.5) / width, (PIXEL - center + 0.5) / width
    return (erf(high / jnp.sqrt(2)) - erf(low / jnp.sqrt(2))) / 2


def spot(p):
    """Photons expected in the pixels: a molecule and the background."""
    light = along(p["y"], p["width"])[:, None] * along(p["x"], p["width"])
    return p["photons"] * light + p["background"]


def difference(p, counts):
    """Model minus observation."""
    return spot(p) - counts


def prediction(p, counts):
    """Model beside observation, for a likelihood."""
    return jaxfit.Prediction(spot(p), counts)


class Spots(NamedTuple):
    """Spots of one brightness."""

    truth: dict
    counts: np.ndarray  # (spot, row, column)


def simulate(photons, random):
    """Spots anywhere in the middle pixel."""
    truth = {
        "photons": np.full(SPOTS, float(photons)),
        "x": random.uniform(-0.5, 0.5, SPOTS),
        "y": random.uniform(-0.5, 0.5, SPOTS),
        "width": np.full(SPOTS, WIDTH),
        "background": np.full(SPOTS, BACKGROUND),
    }
    return Spots(truth, random.poisson(jax.vmap(spot)(truth)).astype(float))


def starts(counts):
    """The rim gives the background, what is above it photons and their centre."""
    is_rim = np.ones((SIDE, SIDE), bool)
    is_rim[2:-2, 2:-2] = False
    background = np.maximum(counts[:, is_rim].mean(axis=1), 0.05)
    above = np.where(is_rim, 0, counts - background[:, None, None]).clip(0)
    total = above.sum(axis=(1, 2)).clip(1)
    return {
        "photons": total,
        "x": np.clip((above * PIXEL).sum(axis=(1, 2)) / total, -3, 3),
        "y": np.clip((above * PIXEL[:, None]).sum(axis=(1, 2)) / total, -3, 3),
        "width": np.full(len(counts), 1.5),
        "background": background,
    }


def fit_all(counts):
    """Parameters and status of all spots, by way."""
    is_weighted = {"weights": 1 / counts.clip(1)}
    ways = (
        (prediction, {"loss": losses.Poisson()}),
        (difference, {}),
        (difference, is_weighted),
    )
    fits = {}
    for name, (function, settings) in zip(WAYS, ways, strict=True):
        fits[name] = jax.tree.map(
            np.asarray,
            jaxfit.solve_batch(
                function,
                starts(counts),
                counts,
                bounds=(LOWER, UPPER),
                keep=lambda fit: (fit.x, fit.status),
                **settings,
            ),
        )
    return fits


def bound(photons):
    """The least errors without bias, by parameter, on average over positions."""
    truth = simulate(photons, np.random.default_rng(0)).truth
    some = jax.tree.map(lambda values: jnp.asarray(values[:100]), truth)

    def information(p):
        slopes = jax.jacfwd(spot)(p)
        rows = jnp.stack([slopes[name].ravel() for name in sorted(p)], axis=1)
        return rows.T @ (rows / spot(p).ravel()[:, None])

    variances = np.linalg.inv(jax.vmap(information)(some))
    mean = np.diagonal(variances, axis1=1, axis2=2).mean(axis=0)
    return dict(zip(sorted(some), np.sqrt(mean), strict=True))


class Measured(NamedTuple):
    """What the fits of one brightness show."""

    errors: dict  # of positions in nm, (2, spots) by way
    precision: dict  # in nm, by way
    photons: dict  # the mean found over the true number, by way
    failed: dict
    bound: float  # in nm


def measure(photons, spots):
    """Fit spots, and compare with the truth."""
    errors, precision, found, failed = {}, {}, {}, {}
    for name, (p, status) in fit_all(spots.counts).items():
        good = status > 0
        off = np.stack([p[axis] - spots.truth[axis] for axis in "xy"])[:, good]
        errors[name] = NANOMETRES * off
        precision[name] = NANOMETRES * np.sqrt(np.mean(off**2))
        found[name] = np.mean(p["photons"][good]) / photons
        failed[name] = int(np.sum(~good))
    least = bound(photons)
    return Measured(errors, precision, found, failed, NANOMETRES * least["x"])


# The picture


def draw_cloud(axis, measured):
    """The errors of positions, by likelihood and by least squares."""
    for name in ("least squares", "maximum likelihood"):
        x, y = measured.errors[name]
        axis.plot(x, y, ".", ms=3, alpha=0.5, color=WAYS[name])
        turn = np.linspace(0, 2 * np.pi, 200)
        radius = 2 * measured.precision[name]
        axis.plot(
            *(radius * np.cos(turn), radius * np.sin(turn)),
            color=WAYS[name],
            lw=1.8,
            label=f"{name}: {measured.precision[name]:.0f} nm",
        )
    reach = 4 * measured.precision["least squares"]
    axis.set(xlim=(-reach, reach), ylim=(-reach, 1.35 * reach), aspect="equal")
    axis.set(xlabel="error in x, nm", ylabel="error in y, nm")
    axis.set_title(f"{CLOUD} photons: errors, circles of 2 rms", fontsize="medium")
    axis.legend(frameon=False, fontsize="small", loc="upper center")


def draw_precision(axis, all_measured):
    """Precision against photons."""
    for name, color in WAYS.items():
        values = [measured.precision[name] for measured in all_measured]
        axis.loglog(PHOTONS, values, "o-", ms=4, color=color, label=name)
    least = [measured.bound for measured in all_measured]
    axis.loglog(PHOTONS, least, "k--", lw=1.2, label="Cramér and Rao")
    ticks = [5, 10, 20, 50, 100]
    axis.set_yticks(ticks, labels=map(str, ticks))
    axis.set_xticks(
        [25, 50, 100, 250, 500, 1000], labels="25 50 100 250 500 1000".split()
    )
    axis.minorticks_off()
    axis.set(xlabel="photons", ylabel="rms error of a coordinate, nm")
    axis.set_title("Precision of positions", fontsize="medium")
    axis.legend(frameon=False, fontsize="small")


def draw_photons(axis, all_measured):
    """How many of the photons are found."""
    for name, color in WAYS.items():
        values = [100 * measured.photons[name] for measured in all_measured]
        axis.semilogx(PHOTONS, values, "o-", ms=4, color=color, label=name)
    axis.axhline(100, color="black", ls="--", lw=1.2)
    axis.set_xticks(
        [25, 50, 100, 250, 500, 1000], labels="25 50 100 250 500 1000".split()
    )
    axis.minorticks_off()
    axis.set(xlabel="photons", ylabel="photons found, per cent")
    axis.set_title("Brightness", fontsize="medium")


def draw_spot(figure, axis, photons, random):
    """One spot with its molecule and where it is found."""
    spots = simulate(photons, random)
    image = axis.imshow(
        spots.counts[0], cmap="gray", extent=(-5.5, 5.5, 5.5, -5.5), vmin=0
    )
    bar = figure.colorbar(image, ax=axis, label="photons", shrink=0.85)
    bar.locator.set_params(integer=True)
    fits = fit_all(spots.counts)
    for name, marker in {"maximum likelihood": "o", "least squares": "s"}.items():
        p, _ = fits[name]
        axis.plot(
            *(p["x"][0], p["y"][0], marker),
            ms=9,
            mfc="none",
            mew=2,
            color=WAYS[name],
            label=name,
        )
    place = spots.truth["x"][0], spots.truth["y"][0]
    axis.plot(*place, "+", ms=15, mew=1.8, color="tab:red", label="molecule")
    axis.set(xlabel="x, pixels", ylabel="y, pixels")
    axis.set_title(f"{photons} photons", fontsize="medium")


def draw(all_measured):
    """Spots, errors, precision and brightness: `localisation_low_light.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 8.2), layout="constrained")
    random = np.random.default_rng(5)
    for axis, photons in zip(axes[0], SHOWN, strict=True):
        draw_spot(figure, axis, photons, random)
    axes[0, 0].legend(
        fontsize="small", loc="lower left", facecolor="0.2", labelcolor="white"
    )
    draw_cloud(axes[1, 0], all_measured[list(PHOTONS).index(CLOUD)])
    draw_precision(axes[1, 1], all_measured)
    draw_photons(axes[1, 2], all_measured)
    figure.savefig("localisation_low_light.png", dpi=120)
    print("Saved localisation_low_light.png")


def main():
    """Simulate, fit, compare, draw."""
    random = np.random.default_rng(2)
    began = time.perf_counter()
    all_measured = [measure(photons, simulate(photons, random)) for photons in PHOTONS]
    seconds = time.perf_counter() - began
    print(f"{3 * SPOTS * len(PHOTONS)} fits and all else took {seconds:.1f} s\n")
    print("rms error of a coordinate in nm (per cent of the photons found)")
    print(f"{'photons':>8}{'bound':>8}" + "".join(f"{name:>24}" for name in WAYS))
    for photons, measured in zip(PHOTONS, all_measured, strict=True):
        cells = (
            f"{measured.precision[name]:16.1f} ({100 * measured.photons[name]:4.0f}%)"
            for name in WAYS
        )
        print(f"{photons:8}{measured.bound:8.1f}" + "".join(cells))
    failed = {
        name: sum(measured.failed[name] for measured in all_measured) for name in WAYS
    }
    print("Fits without success:", failed)
    draw(all_measured)


if __name__ == "__main__":
    main()
