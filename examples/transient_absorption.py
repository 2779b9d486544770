"""Transient absorption: lifetimes that all wavelengths share, and a spectrum of each.

After a flash the absorption of a sample is measured at 120 wavelengths over time. Three
states follow: what is excited first decays within picoseconds, what it becomes within a
hundred, and what is left stays. At each wavelength they absorb differently, so that one
trace alone says little about the lifetimes, and all of them together say much.

`fit_batch(..., shared=("rate1", "rate2"))` fits all traces as one problem. Amplitudes
enter linearly, and are eliminated: variable projection, without being asked for. Their
maps are the decay-associated spectra. Prints the lifetimes, beside those of traces by
themselves, and saves `transient_absorption.png`.
"""

import time

import numpy as np

import jaxfit
from jaxfit import models

WAVELENGTHS = np.linspace(430, 720, 120)  # nm
DELAYS = np.concatenate([np.arange(0.2, 4, 0.2), np.geomspace(4, 1000, 60)])  # ps
LIFETIMES = 3.5, 110.0  # ps
NOISE = 0.15  # thousandths of an absorbance


def band(center: float, width: float, height: float) -> np.ndarray:
    """A band of a spectrum."""
    return height * np.exp(-(((WAVELENGTHS - center) / width) ** 2) / 2)


def traces() -> tuple[np.ndarray, np.ndarray]:
    """True spectra (3, wavelengths), and what is measured (wavelengths, delays)."""
    spectra = np.stack(
        [
            band(640, 35, 6.0) - band(520, 18, 3.0),
            band(570, 45, 5.0) - band(470, 20, 4.0),
            band(480, 30, 2.0) - band(450, 14, 2.5),
        ]
    )
    rates = 1 / np.array([*LIFETIMES, np.inf])
    signal = spectra.T @ np.exp(-np.multiply.outer(rates, DELAYS))
    noise = np.random.default_rng(12).normal(size=signal.shape)
    return spectra, signal + NOISE * noise


def main() -> None:
    """Simulate, fit together and apart, print, draw."""
    spectra, measured = traces()
    model = models.BiExponential() + models.Constant()
    settings = {
        "sigma": NOISE,
        "absolute_sigma": True,
        "p0": {"rate1": 0.3, "rate2": 0.01},
    }
    together = {"shared": ("rate1", "rate2"), **settings}
    jaxfit.fit_batch(model, DELAYS, measured, **together)  # compile
    begin = time.perf_counter()
    fits = jaxfit.fit_batch(model, DELAYS, measured, **together)
    milliseconds = 1e3 * (time.perf_counter() - begin)
    print(f"{len(measured)} traces together in {milliseconds:.0f} ms")
    print(fits)

    apart = jaxfit.fit_batch(model, DELAYS, measured, **settings)
    print(f"\n{'lifetime, ps':<16}{'true':>8}{'together':>20}{'apart':>20}")
    for name, true in zip(("rate1", "rate2"), LIFETIMES, strict=True):
        lifetime, error = 1 / fits[name], fits.errors[name] / fits[name] ** 2
        alone = np.median(apart.errors[name] / apart[name] ** 2)
        one = f"{lifetime:.3f} ± {error:.3f}"
        print(f"{name:<16}{true:>8}{one:>20}{f'± {alone:.3f} (median)':>20}")
    draw(spectra, measured, fits)


def draw(spectra: np.ndarray, measured: np.ndarray, fits: jaxfit.BatchFit) -> None:
    """Data, residuals, spectra and some traces, as `transient_absorption.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    edges = {"shading": "nearest", "cmap": "RdBu_r"}
    residual = (measured - fits.predict()) / NOISE
    maps = ((measured, 7, "mΔA"), (residual, 4, "noise"))
    titles = ("Measured", "Measured less fitted")
    for ax, (values, limit, label), title in zip(axes[0], maps, titles, strict=True):
        image = ax.pcolormesh(
            WAVELENGTHS, DELAYS, values.T, vmin=-limit, vmax=limit, **edges
        )
        figure.colorbar(image, ax=ax, label=label)
        ax.set(title=title, xlabel="wavelength, nm", ylabel="delay, ps", yscale="log")
    labels = (
        f"{1 / fits['rate1']:.2f} ± {fits.errors['rate1'] / fits['rate1'] ** 2:.2f} ps",
        f"{1 / fits['rate2']:.1f} ± {fits.errors['rate2'] / fits['rate2'] ** 2:.1f} ps",
        "stays",
    )
    names = ("amplitude1", "amplitude2", "c")
    for k, (name, label, true) in enumerate(zip(names, labels, spectra, strict=True)):
        axes[1, 0].plot(WAVELENGTHS, true, color=f"C{k}", alpha=0.4, linewidth=4)
        axes[1, 0].errorbar(
            *(WAVELENGTHS, fits[name], fits.errors[name]),
            **{"fmt": ".", "color": f"C{k}", "label": label, "markersize": 4},
        )
    axes[1, 0].axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes[1, 0].legend(title="lifetime")
    axes[1, 0].set(
        title="Spectra that decay together (wide: true)",
        xlabel="wavelength, nm",
        ylabel="amplitude, mΔA",
    )
    fine = np.geomspace(DELAYS[0], DELAYS[-1], 300)
    curves = fits.predict(fine)
    for k, index in enumerate((15, 40, 60, 90)):
        label = f"{WAVELENGTHS[index]:.0f} nm"
        axes[1, 1].plot(DELAYS, measured[index], ".", color=f"C{k}", label=label)
        axes[1, 1].plot(fine, curves[index], color=f"C{k}")
    axes[1, 1].legend()
    axes[1, 1].set(
        title="Four of the traces", xlabel="delay, ps", ylabel="mΔA", xscale="log"
    )
    figure.savefig("transient_absorption.png", dpi=120)
    print("saved transient_absorption.png")


if __name__ == "__main__":
    main()
