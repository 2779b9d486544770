"""Many rows on a disk: streamed fits, fits that are killed, and better starts.

`python -m bench.stream` prints the report; `--largest 1e7` stops before larger files.
"""

import functools
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxfit
from bench.report import ROOT, section
from bench.rows import START, best, decay, in_process, megabytes, residual, run_tasks

BLOCK = 2**20
KILLS = 10

elsewhere = functools.partial(in_process, module="bench.stream")


def write_files(folder: Path, rows: int) -> tuple[Path, Path]:
    """Files of times and observations."""
    files = folder / f"t{rows}.npy", folder / f"y{rows}.npy"
    if not files[1].exists():
        arrays = [
            np.lib.format.open_memmap(file, "w+", float, (rows,)) for file in files
        ]
        for begin in range(0, rows, BLOCK):
            end = min(begin + BLOCK, rows)
            for array, leaf in zip(arrays, decay(rows, begin, end), strict=True):
                array[begin:end] = leaf
        for array in arrays:
            array.flush()
    return files


def stream(folder: str, rows: str) -> dict:
    """Rows per second of a streamed fit and of reading alone, and memory."""
    number = int(float(rows))
    blocks = jaxfit.npy_blocks(write_files(Path(folder), number), BLOCK)
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    for block in blocks:
        jax.tree.map(np.array, block.data)
    reading = number / (time.perf_counter() - start)
    warm = [tuple(np.zeros(BLOCK) + 1 for _ in range(2))] * 2
    jaxfit.solve_stream(residual, START, warm, options=jaxfit.Options(max_steps=2))
    start = time.perf_counter()
    fit = jaxfit.solve_stream(residual, START, blocks)
    seconds = time.perf_counter() - start
    return {
        "reading": reading,
        "rate": number * int(fit.nfev) / seconds,
        "passes": int(fit.nfev),
        "memory": megabytes("VmHWM"),
        "x": np.asarray(fit.x).tolist(),
    }


def stream_table(folder: str, largest: float) -> str:
    rows = []
    for number in (1e6, 1e7, 1e8):
        if number <= largest:
            one = elsewhere("stream", folder, str(number))
            rates = (f"{one[name] / 1e6:.0f}" for name in ("rate", "reading"))
            memory = f"{one['memory']:.0f}"
            rows.append((f"{number:.0e}", one["passes"], *rates, memory))
    return section(
        "From a disk",
        ("rows", "passes", "million rows/s", "reading alone", "peak MB"),
        rows,
        f"`solve_stream` with `npy_blocks` of {BLOCK:,} rows of two float64 numbers; "
        "the files are in the system's cache where it has room. The peak is that of "
        "the whole process.",
    )


def killed(folder: str, rows: str) -> dict:
    """A streamed fit with a checkpoint, to be killed."""
    blocks = jaxfit.npy_blocks(write_files(Path(folder), int(rows)), 10_000)
    path = Path(folder) / "killed.npz"
    fit = jaxfit.solve_stream(
        residual, START, blocks, checkpoint=path, checkpoint_every=2
    )
    return {"x": np.asarray(fit.x).tobytes().hex()}


def kills(folder: str) -> str:
    """A fit that is killed again and again, beside one that is left alone."""
    rows, path = 1_000_000, Path(folder) / "killed.npz"
    expected = elsewhere("killed", folder, str(rows))
    command = [sys.executable, "-m", "bench.stream", "killed", folder, str(rows)]
    rng, same, ended = random.Random(0), 0, 0
    for _ in range(KILLS):
        path.unlink(missing_ok=True)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not path.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 2))
        ended += process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        same += elsewhere("killed", folder, str(rows)) == expected
    return (
        f"### Killed\n\nA streamed fit of {rows:,} rows in 100 blocks was killed "
        f"(SIGKILL) at {KILLS} random moments, {ended} of them after its end, and "
        f"started again: {same} of {KILLS} answers are bit for bit that of a fit that "
        "was left alone."
    )


# Starts


def oscillation(x, data):
    """A damped oscillation with offset."""
    t, y = data
    wave = x[0] * jnp.exp(-x[1] * t) * jnp.cos(x[2] * t + x[3])
    return wave + x[4] - y


def two_decays(x, data):
    """Two decays with offset; the logarithms of the rates are parameters."""
    t, y = data
    decays = x[0] * jnp.exp(-jnp.exp(x[1]) * t) + x[2] * jnp.exp(-jnp.exp(x[3]) * t)
    return decays + x[4] - y


# name, model, truth, start
BAD_STARTS = (
    ("oscillation, half the frequency", oscillation, (2.5, 0.2, 6, 0.5, 0.3), 3),
    ("two decays, rates 20 times too high", two_decays, (2, 0, 3, 2, 0.3), (4, 6)),
    ("two decays, rates 150 times too low", two_decays, (2, 0, 3, 2, 0.3), (-5, -4)),
)


def bad_start(model, guess) -> np.ndarray:
    """Amplitudes of one, and the guess of a frequency or of rates."""
    if model is oscillation:
        return np.array([1, 0.1, guess, 0, 0], float)
    return np.array([1, guess[0], 1, guess[1], 0], float)


def starts() -> list:
    """What a better start saves: passes, seconds, cost, for some bad starts."""
    import optax

    rows, found = 1_000_000, []
    t = np.linspace(0, 5, rows)
    noise = 0.1 * np.random.default_rng(0).normal(size=rows)
    for problem, model, truth, guess in BAD_STARTS:
        y = np.asarray(model(np.array(truth, float), (t, 0.0))) + noise
        setting = model, jax.block_until_ready(jax.device_put((t, y)))
        for name, way in START_HELP.items():
            x0 = bad_start(model, guess)
            before, start = best(lambda w=way, x=x0, s=setting: w(s[0], x, s[1], optax))
            seconds, fit = best(
                lambda x=start, s=setting: jaxfit.solve(
                    s[0], x, s[1], rows=jaxfit.Chunked()
                )
            )
            numbers = before, seconds, int(fit.nfev), float(fit.cost)
            found.append((problem, name, *numbers))
    return found


START_HELP = {
    "none": lambda fn, x0, data, _: x0,
    "subsample_start": lambda fn, x0, data, _: jaxfit.subsample_start(fn, x0, data),
    "warm_start": lambda fn, x0, data, optax: jaxfit.warm_start(
        fn, x0, data, optimizer=optax.adam(0.05), steps=2000
    ),
}


def starts_table() -> str:
    rows = [
        (
            f"{problem}; {name}",
            *(f"{1e3 * seconds:.0f}" for seconds in (before, fit)),
            passes,
            f"{cost:.0f}",
        )
        for problem, name, before, fit, passes, cost in elsewhere("starts")
    ]
    return section(
        "Better starts",
        ("start; help", "ms of help", "ms of fit", "passes", "cost"),
        rows,
        "5 parameters, 1e6 rows. Costs of 5000 are the solution, others are wrong "
        "minima.",
    )


def parts(largest: float) -> Iterator[str]:
    """The report, section by section."""
    with tempfile.TemporaryDirectory() as folder:
        yield stream_table(folder, largest)
        yield kills(folder)
    yield starts_table()


def report() -> str:
    """The report."""
    return "\n\n".join(parts(1e8))


TASKS = {"stream": stream, "killed": killed, "starts": starts}


if __name__ == "__main__":
    run_tasks("bench.stream", __doc__, TASKS, parts)
