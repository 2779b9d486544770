"""The README's Python and the examples run as they stand, with smaller numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SMALLER = {  # in the README
    "(20, 30, 120)": "(4, 6, 120)",
    "(10_000, 3)": "(100, 3)",
    "np.tile(v, 10_000)": "np.tile(v, 100)",
    "block=100_000": "block=1000",
    "starts=64": "starts=6",
}
ELSEWHERE = "jax.distributed", "Parquet"  # blocks that want hosts, or other libraries

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
        assert text.count(large) == 1, f"{large} stands there {text.count(large)} times"
        text = text.replace(large, small)
    return text


def run(text, folder):
    """A script in a process of its own: what it prints."""
    script = folder / "script.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme(tmp_path):
    text = smaller((ROOT / "README.md").read_text(), SMALLER)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    here = [b for b in blocks if not any(name in b for name in ELSEWHERE)]
    assert len(blocks) - len(here) == len(ELSEWHERE)
    assert "Gaussian + Linear" in run("\n".join(here), tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} >= {"peak.png", "maps.png"}


@pytest.mark.parametrize("name", ["interop", "likelihoods"])
def test_a_guide(name, tmp_path):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "Converged" in run("\n".join(blocks), tmp_path)


def test_all_examples_are_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name, tmp_path):
    text = smaller((ROOT / "examples" / f"{name}.py").read_text(), EXAMPLES[name])
    data = str(ROOT / "examples" / "data")
    text = text.replace('Path(__file__).parent / "data"', f"Path({data!r})")
    run(text, tmp_path)
    if "savefig" in text:
        assert [*tmp_path.glob("*.png")]
