"""What the code of a function names, and the package that a thing comes from."""

import dis
import functools
import itertools
import sys
import sysconfig
import types
from collections.abc import Hashable
from typing import Any

# Packages whose functions depend on nothing but their arguments. Those of another that
# is installed may depend on the data in its modules.
PURE = {"equinox", "jax", "jaxfit", "jaxlib", "jaxtyping", "numpy", "optax", "scipy"}
PURE |= {"_pytest", "astropy", "lmfit", "matplotlib", "pandas", "xarray"}
PURE |= sys.stdlib_module_names - {"__main__"}

# What these give stands nowhere in the function.
OUTSIDE = {"__import__", "eval", "exec", "input", "open"}
READERS = {
    "numpy": {"fromfile", "genfromtxt", "load", "loadtxt", "memmap"},
    "os": {"getenv"},
    "importlib": {"import_module"},
    "sys": {"_getframe", "modules"},
    "pandas": {"read_csv", "read_excel", "read_hdf", "read_parquet", "read_table"},
}
IDENTITY = {"id", "hash"}  # and by these a copy from what it was made of

# By these a function can tell a number from a tracer without an error.
TYPES = frozenset(
    "isinstance issubclass type hasattr getattr __class__ callable format isscalar "
    "repr str".split()
)
STEPS = frozenset(
    "CONVERT_VALUE FORMAT_SIMPLE FORMAT_VALUE FORMAT_WITH_SPEC IS_OP "
    "MATCH_CLASS".split()
)

# These find what is not named in the code.
LOOKUPS = {"__dict__", "getattr", "globals", "vars"}


@functools.lru_cache(maxsize=1024)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    """All names that a code object and those within it look up.

    Among them what may be such a name, a text, where names are looked up by text.
    """
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(names_in(constant)))
    if LOOKUPS.intersection(names):
        texts = (c for c in code.co_consts if isinstance(c, str) and c.isidentifier())
        names.update(dict.fromkeys(texts))
    return tuple(names)


@functools.lru_cache(maxsize=1024)
def imports_in(code: types.CodeType) -> tuple[str, ...]:
    """The modules that code imports, with dots before those of its own package."""
    steps = list(dis.get_instructions(code))
    names = {
        "." * steps[place - 2].argval + step.argval
        for place, step in enumerate(steps)
        if step.opname == "IMPORT_NAME"
    }
    inside = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return tuple(sorted(names.union(*map(imports_in, inside))))


@functools.lru_cache(maxsize=1024)
def passed_on_in(code: types.CodeType) -> frozenset[str]:
    """The globals of which code takes more than attributes that it names."""
    steps = list(dis.get_instructions(code))
    names = {
        step.argval
        for step, after in itertools.pairwise(steps)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        and after.opname not in ("LOAD_ATTR", "LOAD_METHOD")
    }
    inside = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(names.union(*map(passed_on_in, inside)))


def is_pure(module: Any) -> bool:
    """Whether the functions of a module depend on nothing but their arguments."""
    return package_of(module) in PURE


@functools.lru_cache(maxsize=4096)
def package_of(module: Any) -> str | None:
    """The package of an installed module; None for one that is being worked on."""
    if not isinstance(module, str):  # a descriptor of a class in C, or None
        return module and "builtins"
    package = module.partition(".")[0]
    if package in PURE:
        return package
    file = getattr(sys.modules.get(module), "__file__", None)
    folders = (sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    return package if file and file.startswith(tuple(folders)) else None


@functools.lru_cache(maxsize=1024)
def can_tell(code: types.CodeType) -> bool:
    """Whether code may look at types, or catch an error."""
    if TYPES.intersection(code.co_names) or code.co_exceptiontable:
        return True
    if any(step.opname in STEPS for step in dis.get_instructions(code)):
        return True
    inside = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return any(map(can_tell, inside))


def readable_code(code: types.CodeType) -> Hashable:
    """Code as plain values, without its place in a file."""
    constants = tuple(
        readable_code(c) if isinstance(c, types.CodeType) else (type(c), c)
        for c in code.co_consts
    )
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    counts = code.co_argcount, code.co_kwonlyargcount, code.co_flags
    return code.co_code, constants, names, counts
