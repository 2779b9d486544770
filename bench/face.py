"""`fit`, its intervals and `fit_batch` beside lmfit and xarray, with their answers.

It runs in a process of its own, in which JAX has one CPU device for each of two cores.
"""

import time
import timeit
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lmfit
import numpy as np
import xarray

import jaxfit
from bench.report import markdown

REPEATS = 15
BATCH_SECONDS = 0.05
SIGMAS = (1, 2, 3)  # of lmfit's conf_interval
REFITS = 2000
SIDE, CHANNELS = 200, 64
SAMPLE = 400  # spectra of the map in lmfit's loop
AGREEMENT = 1e-2  # of parameters, in standard errors


def _peak(xp) -> Callable:
    def peak(x, height, center, width, slope, intercept):
        bell = xp.exp(-0.5 * ((x - center) / width) ** 2)
        return height * bell + slope * x + intercept

    return peak


def _decay(xp) -> Callable:
    def decay(x, amplitude, rate, offset):
        return amplitude * xp.exp(-rate * x) + offset

    return decay


X = np.linspace(0, 10, 100)
WORKLOADS = {
    "peak on a line": (
        _peak,
        {"height": 5, "center": 4, "width": 0.8, "slope": 0.1, "intercept": 1},
    ),
    "decay": (_decay, {"amplitude": 8, "rate": 0.7, "offset": 1}),
}


class Fits:
    """The same fit here and in lmfit, from the same start."""

    def __init__(self, written, truth: dict[str, float]):
        noise = 0.2 * np.random.default_rng(1).normal(size=X.size)
        self.y = written(np)(X, **truth) + noise
        self.ours, self.theirs = written(jnp), lmfit.Model(written(np))
        self.start = {name: 1.1 * value + 0.01 for name, value in truth.items()}

    def here(self) -> jaxfit.Fit:
        return jaxfit.fit(self.ours, X, self.y, p0=self.start)

    def there(self):
        return self.theirs.fit(self.y, self.theirs.make_params(**self.start), x=X)

    def refits_there(self) -> np.ndarray:
        """A bootstrap of residuals as one writes it with lmfit."""
        found = self.there()
        generator = np.random.default_rng(0)
        left = self.y - found.best_fit
        samples = []
        for _ in range(REFITS):
            y = found.best_fit + generator.choice(left, left.size)
            samples.append(self.theirs.fit(y, found.params, x=X).best_values)
        return np.array([list(sample.values()) for sample in samples])

    def check(self) -> None:
        """Refuse to time what does not agree."""
        here, there = self.here(), self.there()
        for name, value in there.best_values.items():
            assert abs(here.values[name] - value) < AGREEMENT * here.errors[name], name
            stderr = there.params[name].stderr
            assert abs(here.errors[name] / stderr - 1) < AGREEMENT, name


def in_turns(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of a call of each, warm; in each turn for BATCH_SECONDS."""
    numbers, seconds = {}, {name: [] for name in calls}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        numbers[name] = max(1, round(BATCH_SECONDS / (time.perf_counter() - start)))
    for _ in range(repeats):
        for name, call in calls.items():
            once = timeit.timeit(call, number=numbers[name]) / numbers[name]
            seconds[name].append(once)
    return {name: float(np.median(values)) for name, values in seconds.items()}


# One fit


def one_fit_rows(name: str, fits: Fits) -> list[tuple]:
    """Seconds here and in lmfit for a fit, its intervals and its bootstrap."""
    fits.check()
    here, there = fits.here(), fits.there()
    levels = [1 - 2 * float(jax.scipy.stats.norm.sf(s)) for s in SIGMAS]
    rows = [
        (
            "one fit with its report",
            10,
            in_turns(
                {
                    "here": lambda: fits.here().report(),
                    "lmfit": lambda: fits.there().fit_report(),
                },
                REPEATS,
            ),
        ),
        (
            "profile intervals, 3 levels",
            50,
            in_turns(
                {
                    "here": lambda: here.intervals("profile", levels),
                    "lmfit": lambda: there.conf_interval(),
                },
                REPEATS,
            ),
        ),
        (
            f"bootstrap, {REFITS} refits",
            200,
            in_turns({"here": lambda: here.bootstrap(REFITS)}, REPEATS)
            | in_turns({"lmfit": fits.refits_there}, 1),
        ),
    ]
    return [
        (name, what, *_compared(t["here"], t["lmfit"], target))
        for what, target, t in rows
    ]


def _compared(here: float, peer: float, target: float) -> tuple[str, ...]:
    return f"{1e3 * here:.3g}", f"{1e3 * peer:.4g}", f"{peer / here:.1f}", f"≥ {target}"


# A map


def spectra() -> np.ndarray:
    """A map of peaks on a ground, (SIDE, SIDE, CHANNELS), with noise."""
    row, column = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    height, center = 4 + 2 * row, 4 + 2 * column
    width = 0.6 + 0.3 * np.hypot(row - 0.5, column - 0.5)
    x = np.linspace(0, 10, CHANNELS)
    bell = np.exp(-0.5 * ((x - center[..., None]) / width[..., None]) ** 2)
    noise = 0.2 * np.random.default_rng(0).normal(size=(SIDE, SIDE, CHANNELS))
    return height[..., None] * bell + 1 + noise


def _spectrum(xp) -> Callable:
    def spectrum(x, height, center, width, offset):
        return height * xp.exp(-0.5 * ((x - center) / width) ** 2) + offset

    return spectrum


START = {"height": 5.0, "center": 5.0, "width": 0.8, "offset": 1.0}


def map_rows() -> list[tuple]:
    """Seconds for the whole map, and for lmfit's loop from a sample of it."""
    y, x = spectra(), np.linspace(0, 10, CHANNELS)
    ours, written = _spectrum(jnp), _spectrum(np)
    array = xarray.DataArray(y, dims=("row", "column", "x"), coords={"x": x})
    model = lmfit.Model(written)
    chosen = np.random.default_rng(1).choice(SIDE * SIDE, SAMPLE, replace=False)
    flat = y.reshape(-1, CHANNELS)

    def loop():
        return [
            model.fit(flat[k], model.make_params(**START), x=x).best_values
            for k in chosen
        ]

    def here():
        return jaxfit.fit_batch(ours, x, y, p0=START)

    def dropped_in():
        return jaxfit.curvefit(array, "x", ours, p0=START, errors="ignore")

    def theirs():
        return array.curvefit("x", written, p0=START, errors="ignore")

    _check_map(here(), loop(), chosen, theirs(), dropped_in())
    fast = in_turns({"fit_batch": here, "curvefit": dropped_in}, REPEATS)
    slow = in_turns({"lmfit": loop, "xarray": theirs}, 1)
    slow["lmfit"] *= SIDE * SIDE / SAMPLE
    name = f"map, {SIDE} x {SIDE} x {CHANNELS}"
    return [
        (name, f"{ours} beside {peer}", *_compared(fast[ours], slow[key], target))
        for ours, peer, key, target in (
            ("fit_batch", f"lmfit's loop (from {SAMPLE} fits)", "lmfit", 500),
            ("fit_batch", "xarray's curvefit", "xarray", 100),
            ("curvefit", "xarray's curvefit", "xarray", 100),
        )
    ]


def _check_map(here, loop, chosen, theirs, dropped_in) -> None:
    """Refuse to time what does not agree; a width may have either sign."""
    assert here.success.all()
    sampled = {n: np.array([found[n] for found in loop]) for n in START}
    whole = [
        {n: found["curvefit_coefficients"].sel(param=n).values.ravel() for n in START}
        for found in (theirs, dropped_in)
    ]
    everywhere = np.arange(SIDE * SIDE)
    for peer, at in (sampled, chosen), *((maps, everywhere) for maps in whole):
        for name, values in peer.items():
            mine, error = (d[name].ravel()[at] for d in (here.values, here.errors))
            away = np.abs(np.abs(values) - np.abs(mine)) / error
            assert np.mean(away < AGREEMENT) > 0.999, name


# Report


WORDS = f"""Milliseconds, medians of {REPEATS} turns; a loop of lmfit, its bootstrap
and xarray's own method run once after a first call. lmfit gets functions of NumPy and
finite differences, as its users write them; all start from the same numbers. Every
parameter agrees to {AGREEMENT:g} standard errors."""


def report() -> str:
    """The report, in one piece."""
    rows = []
    for name, workload in WORKLOADS.items():
        rows += one_fit_rows(name, Fits(*workload))
    rows += map_rows()
    head = "data", "task", "here", "peer", "ratio", "target"
    return "\n\n".join(["## For people", WORDS, markdown(head, rows)])


if __name__ == "__main__":
    print(report())
