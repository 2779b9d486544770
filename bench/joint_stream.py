"""Spectra on a disk: a joint fit of a million beside one of a thousand in memory.

`python -m bench.joint_stream` prints the report; `--largest 1e5` stops before more.
"""

import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxfit
from bench.report import section
from bench.rows import best, in_process, megabytes, run_tasks

CHANNELS, ITEM, IN_MEMORY = 500, 2**14, 1000
DELAYS = np.linspace(0, 5, CHANNELS)
TRUTH, START, NOISE = np.array([0.4, 2.0]), np.array([0.3, 3.0]), 0.05
NUMBERS = {"seconds": 2, "reading": 2, "passes": 1, "memory": 0}  # and their digits
NO_START = jaxfit.Shared(np.zeros(3))

elsewhere = functools.partial(in_process, module="bench.joint_stream")


def lifetimes(x, u, y):
    """Two lifetimes for all spectra; two amplitudes and an offset for each."""
    shapes = jnp.exp(-DELAYS / x[:, None])
    return u[:2] @ shapes + u[2] - y


def with_scale(x, u, data):
    """The same where each spectrum has a factor known of its own."""
    y, scale = data
    return scale * (lifetimes(x, u, 0.0)) - y


def spectra(number: int, seed: int) -> np.ndarray:
    """Spectra with noise."""
    rng = np.random.default_rng(seed)
    shapes = np.exp(-DELAYS / TRUTH[:, None])
    amounts = rng.uniform(1, 2, (number, 3))
    clean = amounts[:, :2] @ shapes + amounts[:, 2:]
    return clean + NOISE * rng.standard_normal((number, CHANNELS))


def write_file(folder: Path, number: int) -> Path:
    """A file of spectra."""
    path = folder / f"spectra{number}.npy"
    if not path.exists():
        file = np.lib.format.open_memmap(path, "w+", float, (number, CHANNELS))
        for seed, begin in enumerate(range(0, number, ITEM)):
            end = min(begin + ITEM, number)
            file[begin:end] = spectra(end - begin, seed)
        file.flush()
    return path


class Scaled:
    """Items of spectra and factors, which keep blocks from being mixed."""

    def __init__(self, path: Path):
        self.spectra = jaxfit.npy_blocks(path, ITEM // 4)
        self.rows = self.spectra.rows

    def __len__(self) -> int:
        return len(self.spectra)

    def __iter__(self) -> Iterator:
        for item in self.spectra:
            yield item.data, np.ones(len(item.data))


class Counted:
    """A source that counts its passes."""

    def __init__(self, blocks):
        self.blocks, self.rows, self.items = blocks, blocks.rows, 0

    def __iter__(self) -> Iterator:
        for item in self.blocks:
            self.items += 1
            yield item


def stream(way: str, folder: str, number: str) -> dict:
    """Seconds, passes and memory of a fit from a disk."""
    size = int(float(number))
    path = write_file(Path(folder), size)
    plain = jaxfit.npy_blocks(path, ITEM) if way == "mixed" else Scaled(path)
    fn = lifetimes if way == "mixed" else with_scale
    start = time.perf_counter()
    for item in plain:
        np.sum(item.data if way == "mixed" else item[0])
    reading = time.perf_counter() - start
    source, first = Counted(plain), [next(iter(plain))]
    jaxfit.solve_joint_stream(fn, START, NO_START, first, linear=True)
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    fit = jaxfit.solve_joint_stream(fn, START, NO_START, source, linear=True)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "reading": reading,
        "passes": source.items / len(plain),
        "trips": int(fit.nfev),
        "memory": megabytes("VmHWM"),
        "is_success": bool(fit.success),
        "errors": (np.abs(fit.x - TRUTH) / fit.stderr()).tolist(),
    }


def in_memory(number: str) -> dict:
    """Seconds of a warm fit in memory."""
    y = spectra(int(number), 0)
    seconds, fit = best(
        lambda: jaxfit.solve_joint(lifetimes, START, NO_START, y, linear=True)
    )
    return {"seconds": seconds, "trips": int(fit.nfev)}


def table(folder: str, largest: float) -> str:
    """Fits from a disk, by number of spectra."""
    memory = elsewhere("in_memory", str(IN_MEMORY))
    seconds = f"{memory['seconds']:.2f}"
    rows = [(f"{IN_MEMORY:.0e}, solve_joint", memory["trips"], seconds, "", "", "")]
    for way, most in (("mixed", largest), ("general", largest / 10)):
        for number in (1e4, 1e5, 1e6):
            if number > most:
                continue
            one = elsewhere("stream", way, folder, str(number))
            assert one["is_success"], one
            assert max(one["errors"]) < 5, one
            words = (f"{one[name]:.{digits}f}" for name, digits in NUMBERS.items())
            rows.append((f"{number:.0e}, {way}", one["trips"], *words))
    return section(
        "Joint fits from a disk",
        ("spectra, way", "trips", "seconds", "reading alone", "passes", "peak MB"),
        rows,
        f"`solve_joint_stream(linear=True)`: {CHANNELS} channels in float64, 2 "
        "lifetimes for all and 3 amplitudes for each. Mixed: spectra that differ in "
        "their data alone. General: each has a factor of its own. Programs were "
        "compiled before; the peak is that of the whole process.",
    )


def parts(largest: float) -> Iterator[str]:
    """The report, section by section."""
    with tempfile.TemporaryDirectory() as folder:
        yield table(folder, largest)


def report() -> str:
    """The report."""
    return "\n\n".join(parts(1e6))


TASKS = {"stream": stream, "in_memory": in_memory}


if __name__ == "__main__":
    run_tasks("bench.joint_stream", __doc__, TASKS, parts)
