"""jaxfit in FitBenchmarking: `python -m bench.fitbenchmarking.run [nist] [cutest]`.

`--write` keeps the tables in RESULTS.md. `register()` is all that FitBenchmarking
needs to know of jaxfit; its own command line then takes `-s jaxfit`, and its HTML
report is had by `register(); fitbenchmarking.cli.main.main()`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import fitbenchmarking
import fitbenchmarking.controllers
import fitbenchmarking.parsing
import jax
import numpy as np
from fitbenchmarking.core.fitting_benchmarking import Fit
from fitbenchmarking.utils.checkpoint import Checkpoint
from fitbenchmarking.utils.options import Options

from bench import report

HERE = Path(__file__).parent
NIST = Path(fitbenchmarking.__file__).parent / "benchmark_problems" / "NIST"
PASSES = 3
LARGEST = 12  # parameters of a problem of CUTEst
ZERO = 1e-12  # a sum of squares of which no more is asked
WORSE = 1e-4  # a sum of squares so much above the best counts as missed
PACKAGES = (
    *("fitbenchmarking", "jaxfit", "jax", "numpy", "scipy", "lmfit", "iminuit"),
    *("pygsl", "galahad-optrove", "bumps", "gofit", "sif2jax"),
)


def register() -> None:
    """Tell FitBenchmarking of the controller and the parser in this folder."""
    from bench.fitbenchmarking.jaxfit_controller import MINIMIZERS

    fitbenchmarking.controllers.__path__.append(str(HERE))
    fitbenchmarking.parsing.__path__.append(str(HERE))
    Options.VALID_FITTING["software"].append("jaxfit")
    Options.VALID_MINIMIZERS["jaxfit"] = MINIMIZERS
    Options.DEFAULT_MINIMZERS["jaxfit"] = MINIMIZERS


def folders(problem_set: str, scratch: Path) -> list[Path]:
    """The folders of a problem set; CUTEst's is made here."""
    if problem_set == "nist":
        return [NIST / f"{level}_difficulty" for level in ("low", "average", "high")]
    from bench.fitbenchmarking import cutest_parser

    for name in cutest_parser.names(LARGEST):
        (scratch / f"{name}.txt").write_text(f"# CUTEst\n{name}\n")
    return [scratch]


def results(problem_set: str) -> list[dict]:
    """What every solver made of every problem.

    The set is run so many times in one process, each time with new controllers: some
    of FitBenchmarking's go on from where they ended when they are run again.
    """
    found: dict[tuple[str, str], dict] = {}
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as out:
        options = Options(
            str(HERE / "options.ini"), additional_options={"results_dir": out}
        )
        for folder in folders(problem_set, Path(scratch)):
            for number in range(PASSES):
                label = f"{folder.name} {number}"
                fit = Fit(options, str(folder), Checkpoint(options), label)
                for one in fit.benchmark()[0]:
                    key = one.name, f"{one.software} {one.minimizer}"
                    found.setdefault(key, _described(*key, one))
                    found[key]["seconds"].append(float(one.runtimes[0]))
    return list(found.values())


def _described(problem: str, solver: str, one) -> dict:
    return {
        "problem": problem,
        "solver": solver,
        "accuracy": float(one.accuracy),
        "seconds": [],
        "calls": one.func_evals,
        "flag": one.error_flag,
        "x": None if one.params is None else np.asarray(one.params, float).tolist(),
    }


def kept(problem_set: str, folder: Path | None) -> list[dict]:
    """The results in a folder, which keeps them; without one they are found anew."""
    if folder is None:
        return results(problem_set)
    path = folder / f"{problem_set}.json"
    if not path.exists():
        path.write_text(json.dumps(results(problem_set)))
    return json.loads(path.read_text())


def excesses(found: list[dict]) -> None:
    """Add how far each sum of squares lies above the best of its problem.

    The best is that of all solvers from all starts. The excess is relative to it; sums
    below 1e-12 are zero.
    """
    least: dict[str, float] = {}
    for one in found:
        name = one["problem"].partition(", Start")[0]
        least[name] = min(least.get(name, np.inf), one["accuracy"])
    for one in found:
        best = least[one["problem"].partition(", Start")[0]]
        one["best"] = best
        one["excess"] = max(one["accuracy"] - best, 0) / max(best, ZERO)


def by_solver(found: list[dict]) -> dict[str, dict[str, dict]]:
    """solver -> problem -> result."""
    out: dict[str, dict[str, dict]] = {}
    for one in found:
        out.setdefault(one["solver"], {})[one["problem"]] = one
    return out


def summary(found: list[dict]) -> str:
    """A line for each solver."""
    head = (
        *("solver", "fits", f"missed by > {WORSE:g}", "of these a success is claimed"),
        *("no answer", "within 1e-8 of the best", "s of all, first", "s of all, then"),
        "times the fastest",
    )
    fastest: dict[str, float] = {}
    for one in found:
        if one["excess"] <= WORSE:
            time = min(one["seconds"][1:])
            fastest[one["problem"]] = min(fastest.get(one["problem"], np.inf), time)
    rows = []
    for solver, fits in by_solver(found).items():
        values = list(fits.values())
        answers = [one for one in values if np.isfinite(one["accuracy"])]
        missed = [one for one in answers if one["excess"] > WORSE]
        then = [min(one["seconds"][1:]) for one in answers]
        ratios = [
            time / fastest[one["problem"]]
            for one, time in zip(answers, then, strict=True)
            if one["problem"] in fastest  # which nobody may have solved
        ]
        rows.append(
            (
                *(solver, len(values), len(missed)),
                sum(one["flag"] == 0 for one in missed),
                len(values) - len(answers),
                sum(one["excess"] <= 1e-8 for one in answers),
                f"{sum(one['seconds'][0] for one in answers):.2f}",
                f"{sum(then):.3f}",
                f"{np.median(ratios):.1f}",
            )
        )
    return report.markdown(head, rows)


def accuracies(found: list[dict]) -> str:
    """A line for each problem: how far above the best each solver ended."""
    solvers = by_solver(found)
    rows = []
    for problem in dict.fromkeys(one["problem"] for one in found):
        ends = [fits.get(problem) for fits in solvers.values()]
        least = next(one["best"] for one in ends if one)
        rows.append((problem, f"{least:.4g}", *map(_told, ends)))
    return report.markdown(("problem", "best", *solvers), rows)


def _told(one: dict | None) -> str:
    if one is None or not np.isfinite(one["accuracy"]):
        return "none"
    return "" if one["excess"] <= 1e-8 else f"{one['excess']:.0e}"


def machine() -> str:
    """The versions and the machine."""
    text = report.header().partition("\n\n| ")[2]
    kept = [line for line in text.splitlines() if " not installed " not in line]
    versions = [f"{package} {report.version_of(package)}" for package in PACKAGES]
    return "\n".join(f"| {line.removeprefix('| ')}" for line in kept[:6]) + (
        "\n\nVersions: " + ", ".join(versions) + "."
    )


INTRODUCTION = """# FitBenchmarking

How these came about, and what they say, is in README.md beside this file. A problem is
missed from a start where a solver ends above the best sum of squares that any found,
from any start. A blank is within 1e-8 of it, a number is how far above it, relative to
it. "none" gave no answer: it failed, ran longer than a minute, or knows no bounds.
"Times the fastest" is the median over the problems of the time beside the quickest
solver that did not miss."""
TITLES = {
    "nist": "NIST: 25 problems, two starts of each",
    "cutest": f"CUTEst: problems with up to {LARGEST} parameters and more values",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="nist, cutest")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    parser.add_argument("--raw", type=Path, help="a folder that keeps the numbers")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    register()
    parts = [INTRODUCTION, machine()]
    for name in arguments.sets or TITLES:
        found = kept(name, arguments.raw)
        excesses(found)
        parts += [f"## {TITLES[name]}", summary(found), accuracies(found)]
        print(*parts[-3:], sep="\n\n", flush=True)
    if arguments.write:
        (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
