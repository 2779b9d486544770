"""A fit from a table on the command line."""

import argparse
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxfit import losses
from jaxfit._core.options import Options
from jaxfit._table import Table, Wrong
from jaxfit.fitting._fit import FitError, fit
from jaxfit.fitting._result import Fit
from jaxfit.models._parse import as_model, library

NOT_SOLVED, WRONG = 1, 2  # exit statuses
LOSSES = {
    name.lower(): getattr(losses, name)
    for name in ("Huber", "SoftL1", "Cauchy", "Arctan", "Tukey")
}
LIKELIHOODS = {  # and what they are given, in their order
    "poisson": (losses.Poisson, ()),
    "poissongaussian": (losses.PoissonGaussian, ("VARIANCE",)),
    "binomial": (losses.Binomial, ("TRIALS",)),
    "gamma": (losses.Gamma, ("SHAPE",)),
    "rician": (losses.Rician, ("SIGMA",)),
    "studentt": (losses.StudentT, ("SCALE", "DF")),
}


def main(arguments: list[str] | None = None, is_own_process: bool = False) -> int:
    """Run a command; returns the exit status.

    0 for a fit that succeeded, 1 for one that found no solution, 2 for a wrong file,
    column, model or option, which is told in one line on stderr.

    Args:
        is_own_process: JAX's settings are the command's, which lets it keep programs.
    """
    parsed = _parser().parse_args(arguments)
    if is_own_process and parsed.command == "fit" and not parsed.no_cache:
        _keep_programs()
    try:
        if parsed.command == "models":
            print(_models())
            return 0
        return _fit(parsed)
    except (Wrong, ValueError, TypeError, OSError, ImportError) as error:
        text = " ".join(str(error).split())
        print(f"jaxfit: {text}", file=sys.stderr)
        return WRONG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxfit", description="Fit models to tables."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("models", help="list the models and their parameters")
    fits = commands.add_parser("fit", help="fit a model to columns of a table")
    add = fits.add_argument
    add(
        "file",
        help="text with commas, semicolons, tabs or spaces between its columns, whose "
        "first line has their names; without one they are 1, 2, 3",
    )
    add("--model", required=True, help='such as "gaussian + b_gaussian + linear"')
    add(
        "--x",
        required=True,
        help="column of x: name or number; several for images: x,y",
    )
    add("--y", required=True, help="column of the data")
    add("--sigma", help="column of standard errors")
    add("--absolute-sigma", action="store_true", help="sigma is known, not relative")
    add("--p0", action="append", default=[], metavar="NAME=VALUE", help="a start")
    add("--fix", action="append", default=[], metavar="NAME=VALUE", help="fix it")
    add(
        "--bounds",
        "--bound",
        action="append",
        default=[],
        metavar="NAME=LOWER:UPPER",
        help="either may be empty",
    )
    add(
        "--loss",
        metavar="NAME:NUMBERS",
        help=f"robust, with a scale: {', '.join(LOSSES)}; or the likelihood of the "
        f"data: {', '.join(map(_form, LIKELIHOODS))}",
    )
    add("--starts", type=int, default=1, help="fit from so many starts")
    add("--max-steps", type=int, metavar="N", help="evaluations of the model at most")
    add("--omit-nan", action="store_true", help="leave out rows with empty cells or NA")
    add("--report", action="store_true", help="print the long report")
    add("--plot", metavar="FILE", help="save a picture")
    add("--json", metavar="FILE", help="save the result")
    add(
        "--no-cache",
        action="store_true",
        help=f"keep no compiled programs; else in {_cache_folder()}",
    )
    return parser


def _cache_folder() -> Path:
    """The folder in which this system keeps what can be made again."""
    home = Path.home()
    if sys.platform == "win32":
        folder = os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = home / "Library" / "Caches"
    else:
        folder = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(folder) / "jaxfit"


def _keep_programs() -> None:
    """Let JAX keep what it compiles from run to run, unless its user says where."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = _cache_folder()
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if is_new:
        print(
            f"jaxfit: compiled programs are kept in {folder}, so that the next run of "
            "a model starts at once; --no-cache turns that off.",
            file=sys.stderr,
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _fit(parsed: argparse.Namespace) -> int:
    model = as_model(parsed.model)
    coordinates = [name.strip() for name in parsed.x.split(",")]
    wanted = [*coordinates, parsed.y, *([parsed.sigma] if parsed.sigma else [])]
    table = Table.read(parsed.file, wanted)
    columns = {name: table.column(name) for name in wanted}
    columns = _full_rows(columns, parsed.omit_nan)
    x = tuple(columns[name] for name in coordinates)
    settings: dict[str, Any] = {
        "sigma": columns[parsed.sigma] if parsed.sigma else None,
        "p0": dict(_assigned("--p0", text) for text in parsed.p0),
        "fixed": dict(_assigned("--fix", text) for text in parsed.fix),
        "bounds": dict(_interval(text) for text in parsed.bounds),
        "loss": _loss(parsed.loss),
        "starts": parsed.starts,
        "absolute_sigma": parsed.absolute_sigma,
    }
    if parsed.max_steps is not None:
        settings["options"] = Options(max_steps=parsed.max_steps)
    try:
        result = fit(model, x[0] if len(x) == 1 else x, columns[parsed.y], **settings)
        status = 0
    except FitError as error:
        result, status = error.fit, NOT_SOLVED
        print(f"jaxfit: {' '.join(str(error).split())}", file=sys.stderr)
    print(result.report() if parsed.report else result)
    if parsed.json:
        Path(parsed.json).write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    if parsed.plot:
        _save_picture(result, parsed)
    return status


def _save_picture(result: Fit, parsed: argparse.Namespace) -> None:
    try:
        import matplotlib
    except ImportError:
        pass  # plot() says what to install
    else:
        matplotlib.use("Agg")
    dates = result.observed.dates
    xlabel = parsed.x if dates is None else f"{parsed.x}: {dates.words}"
    result.plot(xlabel=xlabel, ylabel=parsed.y).savefig(parsed.plot, dpi=150)


def _full_rows(columns: dict[str, np.ndarray], omit: bool) -> dict[str, np.ndarray]:
    """The rows without empty cells, or an error if there are others."""
    empty = {name: np.isnan(column) for name, column in columns.items()}
    for name, cells in empty.items():
        if cells.any() and not omit:
            raise Wrong(
                f"column {name!r} is empty or NaN in {int(cells.sum())} of "
                f"{cells.size} rows; --omit-nan leaves them out."
            )
    full = ~np.any(list(empty.values()), axis=0)
    return {name: column[full] for name, column in columns.items()}


# Options


def _assigned(option: str, text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    try:
        if not separator:
            raise ValueError
        return name.strip(), float(value)
    except ValueError:
        raise Wrong(f"{option} is {text!r}; write NAME=VALUE.") from None


def _interval(text: str) -> tuple[str, tuple[float | None, float | None]]:
    name, _, pair = text.partition("=")
    lower, separator, upper = pair.partition(":")
    try:
        if not separator:
            raise ValueError
        return name.strip(), (
            float(lower) if lower.strip() else None,
            float(upper) if upper.strip() else None,
        )
    except ValueError:
        raise Wrong(f"--bounds is {text!r}; write NAME=LOWER:UPPER.") from None


def _loss(text: str | None) -> losses.Loss | losses.Likelihood | None:
    if text is None:
        return None
    name, *numbers = (part.strip() for part in text.split(":"))
    name = name.lower()
    if name not in LOSSES and name not in LIKELIHOODS:
        raise Wrong(
            f"--loss is {text!r}; write one of {', '.join(LOSSES)}, NAME:SCALE, or "
            f"{', '.join(map(_form, LIKELIHOODS))}."
        )
    try:
        if name in LOSSES:
            scale = ":".join(numbers)
            return LOSSES[name](float(scale or 1))
        kind, needed = LIKELIHOODS[name]
        if len(numbers) != len(needed):
            raise ValueError(f"write {_form(name)}")
        return kind(*map(float, numbers))
    except ValueError as error:
        raise Wrong(f"--loss is {text!r}: {error}") from None


def _form(name: str) -> str:
    """How a likelihood is written."""
    return ":".join([name, *LIKELIHOODS[name][1]])


def _models() -> str:
    """Every model with its parameters and its formula."""
    lines = []
    for name, kind in library().items():
        formula = (inspect.getdoc(kind) or "").partition("\n")[0]
        lines.append(f"{name:<24}{', '.join(kind().names)}")
        lines.append(f"{'':<24}{formula}")
    return "\n".join(lines)
