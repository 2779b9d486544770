"""Pages and examples run as they stand, with smaller numbers; links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Pages with Python, in one process for each line: to import and to compile takes longer
# than to run. Every page has names of its own, and JAX's settings as they are at first.
SCRIPTS = {
    "by name": ("README", "guides/fit", "guides/command_line", "guides/xarray"),
    "in JAX": ("guides/solve", "guides/many", "guides/gpus", "guides/layer"),
    "large": ("guides/joint", "guides/rows", "guides/optimistix"),
    "people": ("faq", "guides/scipy", "guides/lmfit", "guides/nlsq", "models/index"),
    "others": ("guides/interop", "guides/likelihoods"),
    "ahead": ("guides/export", "guides/interactive"),
    "theory": (
        "theory/certificate",
        "theory/condition",
        "theory/covariance",
        "theory/derivatives",
        "theory/one_function",
        "theory/size",
    ),
    "differential equations": ("guides/ode",),
}
SMALLER = {  # numbers that are larger in a page
    "guides/fit": {"(20, 30, 120)": "(4, 6, 120)", "starts=64": "starts=6"},
    "guides/many": {"(10_000, 3)": "(100, 3)"},
    "guides/joint": {
        "(1000, 1)": "(50, 1)",
        "(1000, 2)": "(50, 2)",
        "(1000, l": "(50, l",
    },
    "guides/rows": {
        "np.tile(v, 10_000)": "np.tile(v, 100)",
        "block=100_000": "block=1000",
        "(2000, 3)": "(200, 3)",
        "(2000, 500)": "(200, 500)",
        "block=500": "block=50",
    },
}
ELSEWHERE = {  # blocks that want hosts or other libraries, or that other tests run
    "guides/rows": ("jax.distributed", "Parquet"),
    "guides/gpus": ("lanes=64", "make_mesh"),  # test_batch, test_rows
}
NEEDED = {"guides/ode": "diffrax", "guides/export": "flatbuffers"}
NEEDED |= {"guides/interactive": "ipywidgets"}
PICTURES = {"by name": {"peak.png", "maps.png"}}

RUNNER = """
import runpy, sys
import jax
for page in sys.argv[1:]:
    print("page", page, flush=True)
    runpy.run_path(page)
    jax.config.update("jax_enable_x64", False)
"""

EXAMPLES = {  # and what is smaller in them
    "bilevel": {"CURVES, BINS, WIDTH = 1000": "CURVES, BINS, WIDTH = 50"},
    "calibration_line": {},
    "design": {},
    "dose_response": {},
    "from_scipy": {"WELLS = 384": "WELLS = 12"},
    "gamma_line": {"REPEATED = 2000": "REPEATED = 40"},
    "influence": {},
    "localisation": {"FRAMES, SIZE = 60, 512": "FRAMES, SIZE = 6, 256"},
    "localisation_low_light": {"SPOTS = 2000": "SPOTS = 40"},
    "multihost": {"ROWS = 2_000_000": "ROWS = 20_000"},
    "quickstart": {},
    "t2_map": {"SIZE = 160": "SIZE = 32"},
    "three_peaks": {},
    "transient_absorption": {
        "430, 720, 120)": "430, 720, 24)",
        "(15, 40, 60, 90)": "(3, 8, 12, 18)",
    },
}


def smaller(text, numbers):
    for large, small in numbers.items():
        assert large in text, f"{large} is not there"
        text = text.replace(large, small)
    return text


def run(folder, *arguments):
    """Scripts in a process of their own: what they print."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


def pages():
    """All texts for people by their paths."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests/README.md"]
    return {path: path.read_text() for path in paths}


def path_of(page):
    return ROOT / f"{page}.md" if page == "README" else ROOT / "docs" / f"{page}.md"


def python_of(page):
    """The blocks of a page that are run here, as one script."""
    text = path_of(page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = ELSEWHERE.get(page, ())
    here = [block for block in blocks if not any(name in block for name in names)]
    assert len(blocks) - len(here) == len(names)
    return smaller("\n".join(here), SMALLER.get(page, {}))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_pages(name, tmp_path):
    for package in {NEEDED[page] for page in SCRIPTS[name] if page in NEEDED}:
        pytest.importorskip(package)
    scripts = []
    for page in SCRIPTS[name]:
        scripts.append(tmp_path / (page.replace("/", "_") + ".py"))
        scripts[-1].write_text(python_of(page))
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER)
    run(tmp_path, str(runner), *map(str, scripts))
    assert {p.name for p in tmp_path.glob("*.png")} >= PICTURES.get(name, set())


def test_all_pages_with_python_are_run():
    with_python = {path for path, text in pages().items() if "```python" in text}
    assert with_python <= {path_of(page) for some in SCRIPTS.values() for page in some}


def headings(text):
    """The anchors of a page, as the site and its hosts make them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[\s]+", "-", title) for title in plain}


def test_links_lead_somewhere():
    texts, lost = pages(), []
    for path, text in texts.items():
        text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            where = (path.parent / name).resolve() if name else path
            is_generated = where.parent in (ROOT / "docs/models", ROOT / "docs/api")
            if not (where.exists() or is_generated):
                lost.append(f"{path.relative_to(ROOT)}: {target}")
            elif anchor and where in texts and anchor not in headings(texts[where]):
                lost.append(f"{path.relative_to(ROOT)}: {target}, no such heading")
    assert not lost


def test_all_examples_are_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name, tmp_path):
    text = smaller((ROOT / "examples" / f"{name}.py").read_text(), EXAMPLES[name])
    data = str(ROOT / "examples" / "data")
    text = text.replace('Path(__file__).parent / "data"', f"Path({data!r})")
    script = tmp_path / "script.py"
    script.write_text(text)
    run(tmp_path, str(script))
    if "savefig" in text:
        assert [*tmp_path.glob("*.png")]
