"""The pages of models: formula, parameters with units and bounds, a picture of each.

The words are those of the docstrings, bounds and names those of the code. Units follow
from the function itself: x and y are scaled, and the powers by which each parameter
must be scaled with them are solved for (Euler's theorem on homogeneous functions).
"""

import inspect
import io
import itertools
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from mkdocs.structure.files import File, Files

from jaxfit import models

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after its backend is chosen

jax.config.update("jax_enable_x64", True)


class Shown(NamedTuple):
    """How a model is shown: its formula, where x runs, and curves by their values."""

    formula: str
    x: tuple[float, float]
    values: dict[str, Any]  # a list draws a curve for each
    family: str


TABLE = tomllib.loads((Path(__file__).parent / "models.toml").read_text())
SHOWN = {name: Shown(**shown) for name, shown in TABLE.items()}
FAMILIES = {
    "peaks": "Peaks",
    "curves": "Curves",
    "waves": "Waves, growth and steps",
    "images": "Images",
}
LOGARITHMIC = {"FourParameterLogistic"}
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "ncols": 3}
KNOWN_UNITS = {("Arrhenius", "energy"): "J/mol"}


def on_files(files: Files, *, config: Any) -> Files:
    missing = {
        name
        for name, value in vars(models).items()
        if inspect.isclass(value) and value.__module__.split("._")[-1] in FAMILIES
    } ^ {*SHOWN}
    if missing:
        raise ValueError(f"docs/hooks/models.py and jaxfit.models differ in {missing}")
    for family, title in FAMILIES.items():
        names = [name for name, shown in SHOWN.items() if shown.family == family]
        text = "\n\n".join([f"# {title}", *map(section, names)])
        _add(files, config, f"models/{family}.md", text + "\n")
        for name in names:
            _add(files, config, f"models/pictures/{name.lower()}.svg", picture(name))
    return files


def _add(files: Files, config: Any, path: str, content: str) -> None:
    files.append(File.generated(config, path, content=content))


def section(name: str) -> str:
    """A model's part of its page."""
    model = getattr(models, name)()
    first, _, text = inspect.cleandoc(type(model).__doc__).partition("\n\n")
    words, _, arguments = text.partition("Args:")
    rows = "\n".join(
        f"| `{parameter}` | {_unit_in_words(SHOWN[name].family, unit)} "
        f"| {_interval(model.limits.get(parameter))} |"
        for parameter, unit in units(name).items()
    )
    parts = [
        f"## {name}",
        _beside_the_formula(first),
        f"$$\n{SHOWN[name].formula}\n$$",
        f"![{name}](pictures/{name.lower()}.svg){{ .model loading=lazy }}",
        f"| parameter | unit | between |\n|---|---|---|\n{rows}",
        *_paragraphs(words),
    ]
    if arguments:
        argument, _, meaning = arguments.strip().partition(":")
        parts.append(f"`models.{name}({argument}=...)`: {' '.join(meaning.split())}")
    parts.append(f'By name: `"{name.lower()}"`; [API][jaxfit.models.{name}].')
    return "\n\n".join(parts)


def _beside_the_formula(line: str) -> str:
    """What a docstring's first line says beside the formula."""
    pieces = re.split(r": |(?<=\)), ", line)
    words = [p for p in pieces if len(p) > 2 and not re.search(r"[()^/+]", p)]
    return ". ".join(p[0].upper() + p[1:] for p in words)


def _unit_in_words(family: str, unit: str) -> str:
    """A unit, where x and y are not what is given and what is measured."""
    names = {"x": "coordinate", "y": "value"} if family == "images" else {}
    return names.get(unit, unit)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield re.sub(
            r"^(Parameters|Derived):", r"\n**\1:**", paragraph.strip(), flags=re.M
        )


def _interval(limits: tuple[float, float] | None) -> str:
    if limits is None:
        return "free"
    low, high = limits
    return f"above {low:g}" if math.isinf(high) else f"{low:g} and {high:g}"


def units(name: str) -> dict[str, str]:
    """The unit of each parameter, in those of x and y, from the function alone.

    With a parameter's unit x^a y^b, a change of both units changes nothing:
    Σ a_i p_i ∂f/∂p_i + x ∂f/∂x = 0 and Σ b_i p_i ∂f/∂p_i = f for all x.
    """
    model = getattr(models, name)()
    shown = SHOWN[name]
    values = {p: _first(v) * 1.1 + 0.13 for p, v in shown.values.items()}
    low, high = shown.x
    x = jnp.linspace(low + 0.37, high, 60)
    if shown.family == "images":
        x = jnp.stack([x, 2 * jnp.sin(jnp.arange(60.0) ** 2)])

    def scaled(logarithms: dict[str, Any], of_x: Any) -> Any:
        moved = {p: values[p] * jnp.exp(logarithms[p]) for p in values}
        return model.function(x * jnp.exp(of_x), **moved)

    zeros = dict.fromkeys(values, 0.0)
    by_parameter, by_x = jax.jacfwd(scaled, (0, 1))(zeros, 0.0)
    columns = np.stack([by_parameter[p] for p in values], 1)
    sides = np.stack([-np.asarray(by_x), np.asarray(scaled(zeros, 0.0))], 1)
    powers, *_ = np.linalg.lstsq(columns, sides, rcond=1e-12)
    if np.abs(columns @ powers - sides).max() > 1e-8 * np.abs(sides).max():
        raise ValueError(f"{name} has no units that fit")
    return {
        p: KNOWN_UNITS.get((name, p)) or _unit(name, p, *power)
        for p, power in zip(values, powers, strict=True)
    }


def _unit(name: str, parameter: str, of_x: float, of_y: float) -> str:
    if name == "PowerLaw" and parameter == "amplitude":
        return "y / x^exponent"
    if parameter in ("phase", "angle"):
        return "rad"
    x, y = round(of_x), round(of_y)
    if max(abs(of_x - x), abs(of_y - y)) > 1e-6:
        raise ValueError(f"{name}.{parameter} has the unit x^{of_x} y^{of_y}")
    power = "" if abs(x) == 1 else f"^{abs(x)}"
    if x < 0:
        return f"{'y' if y else '1'} / x{power}"
    return " ".join(["y"] * y + [f"x{power}"] * (x > 0)) or "none"


def _first(value: Any) -> float:
    return value[0] if isinstance(value, list) else value


def picture(name: str) -> str:
    """Curves of a model, as SVG."""
    shown, model = SHOWN[name], getattr(models, name)()
    figure, axes = plt.subplots(figsize=(4.2, 2.5), layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    low, high = shown.x
    if shown.family == "images":
        x = np.stack(np.meshgrid(*[np.linspace(low, high, 80)] * 2))
        values = np.asarray(model.function(x, **shown.values))
        axes.pcolormesh(*x, values, shading="auto", rasterized=True)
        axes.set(xlabel="x", ylabel="y", aspect="equal")
    else:
        logarithmic = name in LOGARITHMIC
        x = (np.geomspace if logarithmic else np.linspace)(low, high, 400)
        lists = {p: v for p, v in shown.values.items() if isinstance(v, list)}
        for choice in itertools.product(*lists.values()):
            varied = dict(zip(lists, choice, strict=True))
            y = np.broadcast_to(
                model.function(x, **{**shown.values, **varied}), x.shape
            )
            label = ", ".join(f"{p} = {v:g}" for p, v in varied.items())
            axes.plot(x, np.broadcast_to(y, x.shape), label=label)
        axes.set(xlabel="x", xscale="log" if logarithmic else "linear")
        axes.legend(frameon=False, fontsize="small", **ABOVE)
        axes.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()
