"""The house keeps its order: who imports whom, what is annotated, what is hidden.

The rooms stand in `docs/architecture.md`, from the ground up.
"""

import ast
import builtins
import itertools
import re
from pathlib import Path

import pytest

import jaxfit

ROOT = Path(jaxfit.__file__).parent
FLOORS = (  # each imports from those before it
    "losses",
    "_linalg",
    "_programs",
    "_numpy",
    "_rows",
    "_core",
    "_batch",
    "_joint",
    "_stream",
    "_scipy",
    "models",
    "interop",
    "fitting",
    "_table",
    "_command",
    "__init__",
    "__main__",
)
LINES = 440  # of a file at most
ANNOTATED = 0.9  # of parameters and returns

FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_of(path): tree for path, tree in TREES.items()}


def imports(tree, at_top=False):
    """The modules of the library that a file imports, at its top or later too."""
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "jaxfit"
        ):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def test_no_arrow_runs_up():
    def floor(module):
        return FLOORS.index(module.split(".")[1])

    wrong = [
        (module, other)
        for module, tree in MODULES.items()
        for other in imports(tree)
        if other != "jaxfit" and floor(other) > floor(module)
    ]
    assert not wrong


def test_no_circles():
    """A few imports stand in functions, since a model is added by `+`."""
    arrows = {
        module: set(imports(tree, at_top=True)) - {module}
        for module, tree in MODULES.items()
    }
    while arrows:
        free = [module for module, others in arrows.items() if not others & {*arrows}]
        assert free, f"a circle among {sorted(arrows)}"
        for module in free:
            del arrows[module]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files(path):
    """A docstring, no more lines than can be read, and no name that hides another."""
    tree, text = TREES[path], path.read_text()
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= LINES
    assert not re.search(r"^# .*\n(\s*# .*|\s*)\Z|^# [A-Z][^.]*\n\n\n+# ", text, re.M)
    known = {name for node in tree.body for name in names_bound_by(node)}
    hidden = {
        f"{function.name}: {name}"
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for name in locals_of(function)
        if name in known or name in UNTOUCHED
    }
    assert not hidden


UNTOUCHED = {"all", "any", "id", "input", "max", "min", "sum", "type", "vars"}
assert {*dir(builtins)} >= UNTOUCHED


def names_bound_by(node):
    """The names that an import at the top of a file gives."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(a.asname or a.name).split(".")[0] for a in node.names}
    return set()


def locals_of(function):
    """The names that a function assigns to, arguments included."""
    a = function.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    names = {argument.arg for argument in arguments if argument}
    inner = {
        id(node)
        for child in ast.walk(function)
        if isinstance(child, (ast.FunctionDef, ast.Lambda)) and child is not function
        for node in ast.walk(child)
    }
    names |= {
        child.name
        for child in ast.walk(function)
        if isinstance(child, ast.FunctionDef) and child is not function
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if id(node) not in inner:
                names.add(node.id)
    return names


def test_annotations():
    """Of parameters and returns, wherever a function stands."""
    flags = {}
    for path, tree in TREES.items():
        room = path.relative_to(ROOT).parts[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                flags.setdefault(room, []).extend(annotated(node))
    shares = {room: sum(own) / len(own) for room, own in flags.items()}
    assert min(shares.values()) >= ANNOTATED, shares
    everything = list(itertools.chain.from_iterable(flags.values()))
    assert sum(everything) / len(everything) >= ANNOTATED


def annotated(function):
    a = function.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    for argument in arguments:
        if argument and argument.arg not in ("self", "cls", "_"):
            yield argument.annotation is not None
    if function.name != "__init__" and not function.name.startswith("__check"):
        yield function.returns is not None
