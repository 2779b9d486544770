"""The site of the documentation is built, and a warning is an error."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxfit

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_each_model_has_its_formula_and_picture(site):
    text = "".join(p.read_text() for p in (site / "models").glob("*.html"))
    names = re.findall(r"<h2 id=\"(\w+)\"", text)
    for name in vars(jaxfit.models):
        model = getattr(jaxfit.models, name)
        if isinstance(model, type) and model.__module__.startswith("jaxfit.models._"):
            is_base = name in {"Model", "FunctionModel", "Sum", "Product"}
            assert is_base or name.lower() in names, name
    pictures = re.findall(r'src="(pictures/\w+\.svg)"', text)
    assert len(pictures) == text.count('<math xmlns="http://www.w3.org/1998/Math')
    assert all((site / "models" / picture).exists() for picture in pictures)


def test_all_that_is_public_has_its_place(site):
    text = "".join(p.read_text() for p in (site / "api").glob("*.html"))
    public = {f"jaxfit.{n}" for n in jaxfit.__all__} - {
        "jaxfit.losses",
        "jaxfit.models",
    }
    assert {n for n in public if f'id="{n}"' not in text} == set()


def test_no_formula_is_left_as_it_was_written(site):
    for page in site.rglob("*.html"):
        assert 'class="arithmatex"' not in page.read_text(), page


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {jaxfit.__version__}\n" in citation
    assert f"## {jaxfit.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
