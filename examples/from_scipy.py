"""From SciPy to jaxfit: the same script twice, the answers and the times side by side.

Fluorescence decays from a plate reader. What a user of SciPy writes stands in `work`,
and runs there with NumPy and SciPy, and then with two imports changed: `jax.numpy` in
the model, `curve_fit` and `least_squares` from jaxfit. One curve is fitted with its
errors, within bounds and robustly; then all 1536 wells, one after the other. At the end
the loop goes too: `solve_batch` fits the plate in one call.
"""

import time
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxfit

WELLS = 1536
T = np.linspace(0, 8, 60)  # ns


def simulate(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Counts of all wells (well, time), and their standard errors."""
    lifetime = rng.uniform(1.0, 3.0, (WELLS, 1))
    expected = 900 * np.exp(-T / lifetime) + 60
    counts = rng.poisson(expected).astype(float)
    return counts, np.sqrt(np.maximum(counts, 1))


def work(xp: ModuleType, fits: ModuleType, counts, errors) -> dict[str, np.ndarray]:
    """The script, for (numpy, scipy.optimize) and for (jax.numpy, jaxfit)."""

    def decay(t, amplitude, lifetime, background):
        return amplitude * xp.exp(-t / lifetime) + background

    answers = {}

    # one curve: parameters and their standard errors
    start, y, sigma = [500, 1, 0], counts[0], errors[0]
    popt, pcov = fits.curve_fit(decay, T, y, start, sigma, absolute_sigma=True)
    answers["parameters"] = popt
    answers["standard errors"] = np.sqrt(np.diag(pcov))

    # within bounds
    bounds = [0, 0.1, 0], [5000, 10, 50]
    popt, _ = fits.curve_fit(decay, T, y, start, sigma, bounds=bounds)
    answers["with background <= 50"] = popt

    # some readings disturbed: a loss that outliers do not bend
    disturbed = y + np.where(np.arange(len(T)) % 9 == 4, 300, 0)

    def residual(p):
        return (decay(T, *p) - disturbed) / sigma

    robust = fits.least_squares(residual, start, loss="soft_l1", x_scale="jac")
    answers["robust"] = robust.x

    # the whole plate
    answers["lifetimes"] = np.array(
        [
            fits.curve_fit(decay, T, y, start, sigma)[0][1]
            for y, sigma in zip(counts, errors, strict=True)
        ]
    )
    return answers


def main() -> None:
    """Run both, compare, print."""
    counts, errors = simulate(np.random.default_rng(3))
    before = timed("SciPy", np, scipy.optimize, counts, errors)
    timed("jaxfit, which compiles", jnp, jaxfit, counts, errors)
    after = timed("jaxfit, run again", jnp, jaxfit, counts, errors)
    print(f"\n{'':24}{'SciPy':>30}{'jaxfit':>30}")
    for name, theirs in before.items():
        ours = after[name]
        if name != "lifetimes":
            print(f"{name:24}{show(theirs):>30}{show(ours):>30}")
    difference = np.max(np.abs(after["lifetimes"] / before["lifetimes"] - 1))
    print(f"\nThe {WELLS} lifetimes agree to {difference:.1e} of their values.")

    whole_plate(counts, errors)  # compiles
    began = time.perf_counter()
    lifetimes = whole_plate(counts, errors)
    seconds = time.perf_counter() - began
    difference = np.max(np.abs(lifetimes / before["lifetimes"] - 1))
    print(f"solve_batch fits them in {seconds:.4f} s, and agrees to {difference:.1e}.")


def whole_plate(counts, errors) -> np.ndarray:
    """All lifetimes in one call."""

    def residual(p, well):
        counts, errors = well
        return (p[0] * jnp.exp(-T / p[1]) + p[2] - counts) / errors

    start = np.array([500.0, 1, 0])
    with jax.enable_x64(True):
        fits = jaxfit.solve_batch(
            residual, start, (counts, errors), in_axes=(None, 0), keep=lambda fit: fit.x
        )
        return np.asarray(fits)[:, 1]


def timed(name, *arguments) -> dict[str, np.ndarray]:
    """The answers; prints how long they took."""
    began = time.perf_counter()
    answers = work(*arguments)
    print(f"{name:24}{time.perf_counter() - began:8.2f} s")
    return answers


def show(vector) -> str:
    """Numbers to six digits."""
    return " ".join(f"{value:9.6g}" for value in vector)


if __name__ == "__main__":
    main()
