"""From SciPy to jaxfit: the same script twice, the answers and the times side by side.

Fluorescence decays from a plate reader. `work` is what a user of SciPy writes. It runs
with SciPy, and then with `curve_fit` and `least_squares` from jaxfit. One curve is
fitted with its errors, within bounds and robustly; then all 384 wells. At the end the
loop goes too: `solve_batch`.
"""

import time
from collections.abc import Iterator
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxfit

WELLS = 384
LOOP = f"{WELLS} lifetimes"
T = np.linspace(0, 8, 60)  # ns
START = [500, 1, 0]  # amplitude, lifetime, background
BOUNDS = [0, 0.1, 0], [5000, 10, 500]


def simulate(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Counts of all wells (well, time), and their standard errors."""
    expected = 900 * np.exp(-T / rng.uniform(1.0, 3.0, (WELLS, 1))) + 60
    counts = rng.poisson(expected).astype(float)
    return counts, np.sqrt(np.maximum(counts, 1))


def work(fits: ModuleType, counts, errors) -> Iterator[tuple]:
    """The script, for scipy.optimize and for jaxfit."""

    def decay(t, amplitude, lifetime, background):
        return amplitude * np.exp(-t / lifetime) + background

    y, sigma = counts[0], errors[0]
    popt, pcov = fits.curve_fit(decay, T, y, START, sigma, absolute_sigma=True)
    yield "one curve", popt
    yield "its standard errors", np.sqrt(np.diag(pcov))

    # within bounds
    low, high = [0, 0.1, 0], [5000, 10, 50]
    popt, _ = fits.curve_fit(decay, T, y, START, sigma, bounds=(low, high))
    yield "background at most 50", popt

    # some readings disturbed: a loss that outliers do not bend
    def residual(p, t, y, sigma):
        return (decay(t, *p) - y) / sigma

    disturbed = y + np.where(np.arange(len(T)) % 9 == 4, 300, 0)
    robust = fits.least_squares(
        residual, START, loss="soft_l1", x_scale="jac", args=(T, disturbed, sigma)
    )
    yield "robust", robust.x

    # the whole plate
    lifetimes = np.empty(WELLS)
    for i, (y, sigma) in enumerate(zip(counts, errors, strict=True)):
        lifetimes[i] = fits.curve_fit(decay, T, y, START, sigma, bounds=BOUNDS)[0][1]
    yield LOOP, lifetimes


def whole_plate(counts, errors) -> np.ndarray:
    """All lifetimes in one call."""

    def residual(p, well):
        counts, errors = well
        return (p[0] * jnp.exp(-T / p[1]) + p[2] - counts) / errors

    with jax.enable_x64(True):
        x = jaxfit.solve_batch(
            residual,
            np.array(START, float),
            (counts, errors),
            in_axes=(None, 0),
            bounds=tuple(np.array(bound, float) for bound in BOUNDS),
            keep=lambda fit: fit.x,
        )
    return np.asarray(x)[:, 1]


def timed(steps: Iterator[tuple]) -> dict[str, tuple[np.ndarray, float]]:
    """The answer of each step, and its milliseconds."""
    found, began = {}, time.perf_counter()
    for name, answer in steps:
        found[name] = answer, 1e3 * (time.perf_counter() - began)
        began = time.perf_counter()
    return found


def main() -> None:
    """Run both, compare, print."""
    counts, errors = simulate(np.random.default_rng(3))
    scipy_run = timed(work(scipy.optimize, counts, errors))
    first = timed(work(jaxfit, counts, errors))  # compiles
    again = timed(work(jaxfit, counts, errors))

    print(f"{'':24}{'SciPy':>30}{'jaxfit':>30}")
    for name, (theirs, _) in scipy_run.items():
        texts = (" ".join(f"{v:9.6g}" for v in x[:3]) for x in (theirs, again[name][0]))
        print(f"{name:24}" + "".join(f"{text:>30}" for text in texts))

    print(f"\n{'milliseconds':24}{'SciPy':>10}{'jaxfit':>10}{'first run':>12}")
    for name in ("one curve", "background at most 50", "robust", LOOP):
        times = scipy_run[name][1], again[name][1], first[name][1]
        print("{:24}{:10.2f}{:10.2f}{:12.2f}".format(name, *times))

    plate = timed(("plate", whole_plate(counts, errors)) for _ in range(2))["plate"]
    print(f"{'the same, solve_batch':24}{'':10}{plate[1]:10.2f}")
    ratios = np.array([again[LOOP][0], plate[0]]) / scipy_run[LOOP][0]
    print(f"All lifetimes agree with SciPy's to {np.abs(ratios - 1).max():.0e}.")


if __name__ == "__main__":
    main()
