"""Fits by maximum likelihood: batches of counts beside least squares and peers.

`python -m bench.likelihoods` prints the report; `--fits 1e4` is the size of a batch.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

import jaxfit
from bench.batch import seconds
from bench.report import is_installed, section
from bench.workloads import PSF, T2, Workload, problems
from jaxfit import Prediction, losses

REPEATS = 25
LOOP_FITS = 300  # of a loop over SciPy or iminuit
AGREEMENT = 1e-2  # standard errors
LEAST = 1e-12  # what a mean counts as where it is less, in loops of NumPy


def _counts(rng: np.random.Generator, expected: np.ndarray) -> np.ndarray:
    return rng.poisson(expected).astype(float)


def _positive(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Bounds in which every mean is positive."""
    lower, upper = workload.bounds
    return np.maximum(lower, [0, *lower[1:-1], 0]), upper


class Problem(NamedTuple):
    """Many data sets of counts, and where their fits start."""

    workload: Workload
    starts: np.ndarray
    counts: np.ndarray
    bounds: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, workload: Workload, fits: int) -> "Problem":
        """So many fits."""
        bounds = _positive(workload)
        starts, counts = problems(workload._replace(bounds=bounds), fits)
        return cls(workload, starts, counts, bounds)

    def first(self, fits: int) -> "Problem":
        """The first of them."""
        return self._replace(starts=self.starts[:fits], counts=self.counts[:fits])


WORKLOADS = {
    "PSF": (PSF, "a Gaussian spot on 15 x 15 pixels, 5 parameters"),
    "T2": (T2._replace(noise=_counts), "a decay with offset, 32 points, 3 parameters"),
    "dim": (
        T2._replace(
            draw=lambda rng, n: rng.uniform((5, 30, 0.1), (20, 150, 0.5), (n, 3)),
            noise=_counts,
        ),
        "the same decay with 5 to 20 counts at its height and 0.1 to 0.5 below it",
    ),
}


# Competitors: each a function that takes a problem and returns parameters


class Fits(NamedTuple):
    """What is kept of many fits."""

    x: np.ndarray
    stderr: np.ndarray
    status: np.ndarray
    nfev: np.ndarray


def keep(fit: jaxfit.Solution) -> Fits:
    return Fits(fit.x, fit.stderr(), fit.status, fit.nfev)


def likelihood(workload: Workload) -> Callable:
    """The function of (x, counts) for a likelihood."""
    return lambda x, counts: Prediction(workload.model(jnp, x), counts)


def squares(workload: Workload) -> Callable:
    """The function of (x, counts) for least squares."""
    return lambda x, counts: workload.model(jnp, x) - counts


def ours(problem: Problem, loss: losses.Likelihood | None) -> Callable:
    kind = squares if loss is None else likelihood
    fn = kind(problem.workload)
    return functools.partial(
        jaxfit.solve_batch,
        fn,
        problem.starts,
        problem.counts,
        bounds=problem.bounds,
        loss=loss,
        keep=keep,
    )


def half_deviance(mean: np.ndarray, counts: np.ndarray) -> float:
    """Poisson's, in NumPy."""
    mean = np.maximum(mean, LEAST)
    terms = scipy.special.xlogy(counts, counts / mean) - (counts - mean)
    return float(np.sum(terms))


def slope_of(mean: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The derivative of its terms by the mean."""
    return 1 - counts / np.maximum(mean, LEAST)


def one_by_scipy(problem: Problem, i: int) -> np.ndarray:
    """`minimize` with the analytic gradient, in parameters of size one."""
    workload, counts, scale = problem.workload, problem.counts[i], problem.starts[i]
    lower, upper = (bound / scale for bound in problem.bounds)

    def cost(p: np.ndarray) -> tuple[float, np.ndarray]:
        mean = workload.model(np, p * scale)
        gradient = slope_of(mean, counts) @ workload.jacobian(p * scale) * scale
        return half_deviance(mean, counts), gradient

    found = scipy.optimize.minimize(
        cost,
        np.ones_like(scale),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(lower, upper),
        options={"ftol": 1e-13, "gtol": 1e-8, "maxiter": 1000},
    )
    return found.x * scale


def one_by_iminuit(problem: Problem, i: int, has_gradient: bool = False) -> np.ndarray:
    """Migrad with the analytic gradient, and half the deviance for its function."""
    import iminuit

    workload, counts = problem.workload, problem.counts[i]
    lower, upper = problem.bounds

    def cost(p: np.ndarray) -> float:
        return half_deviance(workload.model(np, p), counts)

    def slope(p: np.ndarray) -> np.ndarray:
        return slope_of(workload.model(np, p), counts) @ workload.jacobian(p)

    grad = slope if has_gradient else None
    minuit = iminuit.Minuit(cost, problem.starts[i], grad=grad)
    minuit.errordef = iminuit.Minuit.LIKELIHOOD
    minuit.limits = list(zip(lower, upper, strict=True))
    minuit.migrad()
    return np.array(minuit.values)


def loop(one: Callable, problem: Problem) -> np.ndarray:
    """One fit after the other."""
    return np.array([one(problem, i) for i in range(len(problem.starts))])


PEERS = {"SciPy, L-BFGS-B": one_by_scipy}
if is_installed("iminuit"):
    PEERS["iminuit, Migrad"] = one_by_iminuit
    PEERS["iminuit with gradient"] = functools.partial(
        one_by_iminuit, has_gradient=True
    )


# Measuring


def interleaved(calls: dict[str, Callable]) -> dict[str, float]:
    """The least time of each of some calls, which take turns."""
    least = dict.fromkeys(calls, np.inf)
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(REPEATS):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            least[name] = min(least[name], time.perf_counter() - began)
    return least


def agreeing(name: str, problem: Problem, x: np.ndarray, fits: Fits) -> str:
    """The share of fits that agree with ours; the others must be worse than ours."""
    ours, model = np.asarray(fits.x)[: len(x)], problem.workload.model
    far = np.max(np.abs(x - ours) / fits.stderr[: len(x)], axis=1)
    for i in np.flatnonzero(~(far < AGREEMENT)):
        costs = [
            half_deviance(model(np, each[i]), problem.counts[i]) for each in (x, ours)
        ]
        assert costs[0] > costs[1] - 1e-6, (name, i, costs)
    return f"{np.mean(far < AGREEMENT):.0%}"


def trips(fits: int) -> str:
    """A trip of a batch, by likelihood and by least squares."""
    rows = []
    for name, (workload, _) in WORKLOADS.items():
        problem = Problem.of(workload, fits)
        calls = {
            "squares": ours(problem, None),
            "Poisson": ours(problem, losses.Poisson()),
        }
        least = interleaved(calls)
        found = {kind: call() for kind, call in calls.items()}
        each = {k: 1e6 * least[k] / np.sum(np.asarray(found[k].nfev)) for k in calls}
        for kind in calls:
            of_kind = found[kind]
            rows.append(
                (
                    f"{name}, {kind}",
                    f"{fits / least[kind]:,.0f}",
                    f"{np.mean(of_kind.nfev):.1f}",
                    f"{each[kind]:.2f}",
                    f"{each[kind] / each['squares']:.2f}",
                    f"{np.mean(np.asarray(of_kind.status) > 0):.2%}",
                )
            )
    head = ("", "fits per second", "trips", "µs a trip", "times", "success")
    words = "; ".join(f"{name}: {text}" for name, (_, text) in WORKLOADS.items())
    words = f"{words}. Bounds keep every mean positive. Target: at most 1.3 times."
    return section(f"A trip of {fits:,} fits, all cores", head, rows, words)


def beside_peers(fits: int) -> str:
    """A batch beside loops."""
    rows = []
    for name, (workload, _) in WORKLOADS.items():
        problem = Problem.of(workload, fits)
        call = ours(problem, losses.Poisson())
        rate = fits / seconds(call)
        found = call()
        rows.append((f"{name}, solve_batch", f"{rate:,.0f}", "", ""))
        some = problem.first(LOOP_FITS)
        for peer, one in PEERS.items():
            began = time.perf_counter()
            x = loop(one, some)
            slower = LOOP_FITS / (time.perf_counter() - began)
            same = agreeing(peer, some, x, found)
            rows.append(
                (f"{name}, {peer}", f"{slower:,.0f}", f"{rate / slower:.0f}", same)
            )
    return section(
        "Poisson batches beside loops",
        ("", "fits per second", "ours is faster, times", "agree"),
        rows,
        f"Loops over the first {LOOP_FITS} fits, SciPy with the analytic gradient, "
        "iminuit as it comes and with it. "
        f"Fits that agree do so to {AGREEMENT} standard errors; the others were "
        "checked to have a higher cost than ours. Target: 500 times iminuit's loop.",
    )


def single() -> str:
    """One fit, warm."""
    rows = []
    for name, (workload, _) in WORKLOADS.items():
        problem = Problem.of(workload, 20)
        fn, loss = likelihood(workload), losses.Poisson()

        def fit(problem=problem, fn=fn, loss=loss):
            x0, counts = problem.starts[0], problem.counts[0]
            found = jaxfit.solve(fn, x0, counts, bounds=problem.bounds, loss=loss)
            return found.x

        rows.append((f"{name}, solve", f"{1e3 * seconds(fit):.2f}"))
        for peer, one in PEERS.items():
            call = functools.partial(one, problem, 0)
            rows.append((f"{name}, {peer}", f"{1e3 * seconds(call, 10):.2f}"))
    return section("One Poisson fit, warm", ("", "ms"), rows)


def sections(fits: int) -> Iterator[str]:
    yield "## Likelihoods"
    yield trips(fits)
    yield beside_peers(fits)
    yield single()


def report(fits: int = 10_000) -> str:
    return "\n\n".join(sections(fits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=float, default=1e4)
    fits = int(parser.parse_args().fits)
    for text in sections(fits):
        print(text, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
