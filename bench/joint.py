"""Joint fits: parameters that blocks share, beside dense fits of all parameters.

`python -m bench.joint` prints the report; `--largest 1e5` leaves out more blocks.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxfit
from bench.report import is_installed, section
from jaxfit import JointSolution, Shared, solve_joint

REPEATS = 5
T = np.linspace(0.0, 5.0, 32)


class Timed(NamedTuple):
    """The results of a call, and its seconds: the first and the least of some more."""

    results: object
    first: float
    warm: float


def timed(call: Callable, repeats: int = REPEATS) -> Timed:
    seconds, results = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        results = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return Timed(results, seconds[0], min(seconds[1:], default=seconds[0]))


def in_words(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


# Decays of one rate, beside dense fits


def decay(x, u, data):
    """A height and an offset for each block, one rate for all."""
    t, y = data
    return u[0] * jnp.exp(-x[0] * t) + u[1] - y


def decays(blocks: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    heights, offsets = rng.uniform(1, 3, (blocks, 1)), rng.uniform(-1, 1, (blocks, 1))
    noise = 0.05 * rng.normal(size=(blocks, len(T)))
    return heights * np.exp(-1.3 * T) + offsets + noise


def dense(both, data):
    """All blocks at once, for a fit of all parameters."""
    t, y = data
    return jax.vmap(lambda u, y: decay(both[0], u, (t, y)))(both[1], y)


def by_scipy(y: np.ndarray) -> np.ndarray:
    """All parameters at once, with exact derivatives: the rate, heights, offsets."""
    blocks = len(y)

    def residual(p):
        return p[1 : 1 + blocks, None] * np.exp(-p[0] * T) + p[1 + blocks :, None] - y

    def jacobian(p):
        shape, heights = np.exp(-p[0] * T), p[1 : 1 + blocks, None]
        columns = np.zeros((blocks, len(T), p.size))
        columns[:, :, 0] = -heights * T * shape
        each = np.arange(blocks)
        columns[each, :, 1 + each] = shape
        columns[each, :, 1 + blocks + each] = 1
        return columns.reshape(-1, p.size)

    start = np.concatenate([[1.0], np.ones(2 * blocks)])
    return scipy.optimize.least_squares(
        lambda p: residual(p).ravel(), start, jacobian, x_scale="jac", gtol=1e-12
    ).x


def by_lmfit(y: np.ndarray) -> np.ndarray:
    import lmfit

    names = [f"{kind}{k}" for kind in ("a", "c") for k in range(len(y))]
    parameters = lmfit.Parameters()
    for name in ("rate", *names):
        parameters.add(name, value=1.0)

    def residual(p):
        values = np.array([p[name].value for name in names]).reshape(2, -1, 1)
        return values[0] * np.exp(-p["rate"].value * T) + values[1] - y

    fit = lmfit.minimize(residual, parameters)
    return np.array([fit.params[name].value for name in ("rate", *names)])


def beside_peers() -> str:
    y = decays(50)
    data, x0, u0 = (Shared(T), y), np.array([1.0]), np.ones((50, 2))
    calls = {
        "solve_joint": lambda: solve_joint(decay, x0, u0, data),
        "solve_joint, linear": lambda: solve_joint(decay, x0, u0, data, linear=True),
        "solve, dense": lambda: jaxfit.solve(dense, (x0, u0), (T, y)),
        "SciPy trf, dense": lambda: by_scipy(y),
    }
    if is_installed("lmfit"):
        calls["lmfit, dense"] = lambda: by_lmfit(y)
    rows, exact = [], None
    for name, call in calls.items():
        repeats = 1 if name.startswith("lmfit") else REPEATS
        found = timed(call, repeats)
        exact = found.results if exact is None else exact
        rate = found.results
        rate = rate.x if hasattr(rate, "x") else rate
        rate = np.ravel(rate[0] if isinstance(rate, tuple) else rate)[0]
        assert abs(rate - exact.x[0]) < 1e-3 * exact.stderr()[0], name
        rows.append((name, in_words(found.warm), in_words(found.first)))
    return section(
        "50 data sets, 1 shared parameter, 2 of each",
        ("fit", "warm", "first"),
        rows,
        "32 points each; the rates agree to 1e-3 standard errors.",
    )


# One kind of spectra, beside a library for separable problems


def exponentials(x, u, data):
    """Two rates for all; amplitudes and an offset of each."""
    t, y = data
    return u[0] * jnp.exp(-x[0] * t) + u[1] * jnp.exp(-x[1] * t) + u[2] - y


def by_deerlab(t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Variable projection on one matrix of all blocks: the two rates."""
    import deerlab

    def matrix(x):
        shapes = np.exp(-x[0] * t), np.exp(-x[1] * t), np.ones_like(t)
        return np.kron(np.eye(len(y)), np.stack(shapes, axis=1))

    return deerlab.snlls(
        y.ravel(), matrix, np.array([0.2, 3.0]), reg=False, uq=False
    ).nonlin


def separable() -> str:
    t, rng = np.linspace(0, 10, 100), np.random.default_rng(4)
    shapes = np.stack([np.exp(-0.3 * t), np.exp(-2 * t), np.ones(100)])
    y = rng.uniform(1, 3, (20, 3)) @ shapes + 0.05 * rng.normal(size=(20, 100))
    x0, u0 = np.array([0.2, 3.0]), Shared(np.zeros(3))
    data = Shared(t), y
    ours = timed(lambda: solve_joint(exponentials, x0, u0, data, linear=True))
    fit = ours.results
    rows = [("solve_joint", in_words(ours.warm), in_words(ours.first))]
    if is_installed("deerlab"):
        other = timed(lambda: by_deerlab(t, y))
        far = np.abs(np.sort(other.results) - np.sort(fit.x)) / fit.stderr()
        assert np.max(far) < 0.02, far
        rows.append(("DeerLab", in_words(other.warm), in_words(other.first)))
    return section(
        "20 spectra of 100 points, 2 shared, 3 linear ones of each",
        ("fit", "warm", "first"),
        rows,
    )


# Histograms


def spectrum(x, u, data):
    """One peak shape and one decay for all; heights and a line of each."""
    t, y = data
    peak = u[0] * jnp.exp(-0.5 * ((t - x[0]) / x[1]) ** 2)
    return peak + u[1] * jnp.exp(-x[2] * t) + u[2] + u[3] * t - y


def histograms() -> str:
    rng = np.random.default_rng(1)
    t, truth = np.linspace(0, 10, 2000), np.array([4.0, 0.5, 0.7])
    u = rng.uniform([50, 10, 5, -0.3], [100, 30, 10, 0.3], (96, 4))
    clean = jax.vmap(lambda u: spectrum(truth, u, (t, 0.0)))(u)
    y = np.asarray(clean) + rng.normal(size=(96, 2000))
    x0, u0 = np.array([4.2, 0.6, 0.5]), np.tile([40.0, 5.0, 1.0, 0.0], (96, 1))
    rows = []
    for linear in (False, True):
        found = timed(
            lambda linear=linear: solve_joint(
                spectrum, x0, u0, (Shared(t), y), linear=linear
            )
        )
        rows.append((f"linear={linear}", *of(found)))
    return section("96 histograms of 2000 bins, 3 shared, 4 of each", HEAD, rows)


HEAD = ("", "warm", "first", "trips", "status")


def of(found: Timed) -> tuple:
    fit = found.results
    assert isinstance(fit, JointSolution)
    return in_words(found.warm), in_words(found.first), int(fit.nfev), int(fit.status)


# Cost by the number of blocks


def peak(x, u, data):
    """A width and a rate for all; height, place and background of each."""
    t, y = data
    return (
        u[0] * jnp.exp(-0.5 * ((t - u[1]) / x[0]) ** 2) + u[2] * jnp.exp(-x[1] * t) - y
    )


def peaks(largest: float) -> str:
    rows = []
    for blocks in (100, 1000, 10_000, 100_000, 1_000_000):
        if blocks > largest:
            break
        rng = np.random.default_rng(2)
        u = rng.uniform([1, 1.5, 0], [3, 3.5, 1], (blocks, 3))
        truth = np.array([0.6, 0.3])
        clean = jax.vmap(lambda u, truth=truth: peak(truth, u, (T, 0.0)))(u)
        y = np.asarray(clean) + 0.05 * rng.normal(size=(blocks, len(T)))
        u0, x0 = u * rng.uniform(0.8, 1.2, u.shape), np.array([0.8, 0.5])
        found = timed(
            lambda x0=x0, u0=u0, y=y: solve_joint(peak, x0, u0, (Shared(T), y)),
            1 if blocks > 1e5 else REPEATS,
        )
        each = f"{1e6 * found.warm / blocks:.1f}"
        rows.append((f"{blocks:,}", *of(found), each))
    return section(
        "Blocks of 32 points, 2 shared, 3 of each",
        ("blocks", *HEAD[1:], "µs a block"),
        rows,
    )


# Many right-hand sides


def spectra(largest: float) -> str:
    t, rows = np.linspace(0, 10, 500), []
    shapes = np.stack([np.exp(-0.3 * t), np.exp(-2 * t), np.ones(500)])
    for number in (1000, 10_000, 100_000, 1_000_000):
        if number > largest:
            break
        rng = np.random.default_rng(3)
        y = rng.uniform(1, 3, (number, 3)) @ shapes
        for part in np.array_split(y, max(number // 10_000, 1)):
            part += 0.05 * rng.standard_normal(part.shape)
        x0, u0 = np.array([0.2, 3.0]), Shared(np.zeros(3))

        def fit(steps, x0=x0, u0=u0, y=y):
            options = jaxfit.Options(max_steps=steps)
            data = (Shared(t), y)
            return solve_joint(exponentials, x0, u0, data, linear=True, options=options)

        whole = timed(lambda fit=fit: fit(1000), 1 if number > 1e5 else 3)
        short = timed(lambda fit=fit: fit(1), 1)
        trips = int(whole.results.nfev)
        trip = (whole.warm - short.warm) / (trips - 1)
        rows.append((f"{number:,}", *of(whole), in_words(max(trip, 0.0))))
    return section(
        "Spectra of 500 channels, 2 shared, 3 linear ones of each",
        ("spectra", *HEAD[1:], "a trip"),
        rows,
    )


def report(largest: float = 1e6) -> str:
    return "\n\n".join(sections(largest))


def sections(largest: float) -> Iterator[str]:
    yield "## Joint fits"
    yield beside_peers()
    yield separable()
    yield histograms()
    yield peaks(largest)
    yield spectra(largest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=float, default=1e6)
    largest = parser.parse_args().largest
    for text in sections(largest):
        print(text, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
