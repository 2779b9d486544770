"""Everything that is run on this project: `nox -s tests`, `nox -s lint`, ..."""

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"

OLDEST = ["jax==0.10.0", "jaxlib==0.10.0", "equinox==0.13.4", "optax==0.2.5"]
TESTS = ("pytest", "-n", "2", "--dist", "loadfile", "--durations=15")

USED = """
import importlib.metadata, numpy as np, jaxfit
assert importlib.metadata.version("jaxfit-lsq") == jaxfit.__version__
x = np.linspace(0, 10, 50)
fit = jaxfit.fit("gaussian + constant", x, 3 * np.exp(-((x - 4) ** 2)) + 1)
assert abs(fit["center"].value - 4) < 1e-8, fit
print(jaxfit.__version__, jaxfit.__file__)
print(fit)
"""


def _groups(session: nox.Session, *names: str) -> None:
    groups = nox.project.load_toml("pyproject.toml")
    for name in names:
        session.install(*nox.project.dependency_groups(groups, name))


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: fit NIST's Thurber data and draw the fit."""
    session.install(".[plot]")
    session.run("python", "examples/quickstart.py")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The test suite on the newest jax for each Python."""
    session.install(".")
    _groups(session, "test")
    session.run(*TESTS, *session.posargs)


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """The test suite on the oldest versions that pyproject.toml allows."""
    session.install(".", *OLDEST)
    _groups(session, "test")
    session.run(*TESTS, *session.posargs)


@nox.session(name="scipy-tests")
def scipy_tests(session: nox.Session) -> None:
    """SciPy's own tests of `curve_fit` and `least_squares`, of the two of jaxfit."""
    session.install(".")
    _groups(session, "test")
    session.run("python", "tests/scipys_own.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in site/; a warning is an error. `nox -s docs -- serve` shows it."""
    session.install(".")
    _groups(session, "docs")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def build(session: nox.Session) -> None:
    """A wheel and an sdist in dist/, each installed afresh and used."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build")
    files = sorted(map(str, Path("dist").glob("*")))
    session.run("twine", "check", "--strict", *files)
    for file in files:
        session.install("--force-reinstall", "--no-deps", file)
        session.install(file)
        folder = session.create_tmp()
        with session.chdir(folder):
            session.run("python", "-c", USED)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    _groups(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types."""
    session.install(".")
    _groups(session, "dev")
    session.run("pyright")


@nox.session
def gallery(session: nox.Session) -> None:
    """Draw the pictures of docs/gallery.md: those of all examples that save one."""
    session.install(".[plot]")
    examples = sorted(Path("examples").absolute().glob("*.py"))
    session.chdir("docs/pictures")
    for example in examples:
        if "savefig" in example.read_text():
            session.run("python", str(example))


@nox.session
def bench(session: nox.Session) -> None:
    """All peers in one run; `nox -s bench -- --write` stores bench/RESULTS.md."""
    session.install(".")
    _groups(session, "bench")
    session.run("python", "-m", "bench", *session.posargs)
