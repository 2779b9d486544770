"""What every report needs: the machine, the versions, Markdown tables."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

import jaxfit

ROOT = Path(__file__).parents[1]

PACKAGES = (
    *("jax", "jaxlib", "jaxfit", "numpy", "scipy", "equinox"),
    *("optimistix", "jaxopt", "lmfit", "xarray", "nlsq", "deerlab", "odrpack"),
    *("iminuit", "lsqfit", "fides"),
)


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def markdown(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, rule, *rows))


def section(title: str, head, rows, words: str = "") -> str:
    """A heading, words and a table."""
    return "\n\n".join(filter(None, (f"### {title}", words, markdown(head, rows))))


def header() -> str:
    """The date, the machine and the versions of all that is compared."""
    rows = [
        ("date", datetime.date.today().isoformat()),
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("device of JAX", jax.devices()[0].device_kind),
        ("Python", platform.python_version()),
        *((package, version_of(package)) for package in PACKAGES),
    ]
    return "# Benchmarks\n\nFloat64.\n\n" + markdown(("", "version"), rows)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def version_of(package: str) -> str:
    """The version of a package, or that it is not installed."""
    if package == "jaxfit":  # of this tree, which may not be installed
        return jaxfit.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
