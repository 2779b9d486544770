"""lmfit's expressions of parameters, as functions of these.

What asteval would run is read instead, and of that only what JAX can compute:
arithmetic, and functions of NumPy and SciPy by their names in lmfit.
"""

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.scipy import special

from jaxfit._numpy.either import xp
from jaxfit.models import faddeeva

Expressions = tuple[tuple[str, str], ...]  # by name

OPERATIONS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
NAMES = {"pi": math.pi, "e": math.e, "inf": math.inf}
FUNCTIONS: dict[str, Callable] = {
    name: getattr(xp, name)
    for name in (
        "exp exp2 expm1 log log2 log10 log1p sqrt cbrt abs absolute sign floor ceil "
        "sin cos tan arcsin arccos arctan arctan2 sinh cosh tanh arcsinh arccosh "
        "arctanh hypot real imag copysign deg2rad rad2deg degrees radians square power "
        "maximum minimum clip sinc"
    ).split()
}
FUNCTIONS |= {
    "max": lambda *values: functools.reduce(xp.maximum, values),
    "min": lambda *values: functools.reduce(xp.minimum, values),
    "asin": xp.arcsin,
    "acos": xp.arccos,
    "atan": xp.arctan,
    "atan2": xp.arctan2,
    "pow": operator.pow,
    "fabs": xp.abs,
    "gamfcn": special.gamma,
    "betalnfnc": special.betaln,
    "erf": special.erf,
    "erfc": special.erfc,
    "wofz": faddeeva,
}


class Tie(NamedTuple):
    """An expression as a function of the other parameters, cut at its bounds."""

    name: str
    lower: float
    upper: float
    expressions: Expressions

    def __call__(self, parameters: Mapping[str, Any]) -> Any:
        value = computed(self.name, dict(self.expressions), parameters)
        return xp.clip(value, self.lower, self.upper)


def computed(
    name: str, expressions: Mapping[str, str], parameters: Mapping[str, Any]
) -> Any:
    """The value of an expression, which may name others."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name() if node.id in parameters:
                return parameters[node.id]
            case ast.Name() if node.id in expressions:
                return computed(node.id, expressions, parameters)
            case ast.Name():
                return NAMES[node.id]
            case ast.UnaryOp():
                return OPERATIONS[type(node.op)](value(node.operand))
            case ast.BinOp():
                return OPERATIONS[type(node.op)](value(node.left), value(node.right))
            case ast.Call(func=ast.Name(id=function)):
                return FUNCTIONS[function](*map(value, node.args))
        raise AssertionError(f"{ast.dump(node)} passed the check.")

    with jax.numpy_dtype_promotion("standard"):
        return value(_tree(expressions[name]))


@functools.lru_cache(maxsize=512)
def _tree(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def names_in(name: str, expressions: Mapping[str, str]) -> set[str]:
    """The names in an expression, and in those that it names."""
    names = {
        node.id for node in ast.walk(_tree(expressions[name])) if type(node) is ast.Name
    }
    inner = (names_in(n, expressions) for n in names if n in expressions)
    return names.union(*inner)


def _unknown_in(
    name: str, expressions: Mapping[str, str], parameters: Sequence[str]
) -> str | None:
    """What in an expression means nothing here; None: it can be computed."""
    known, functions = (ast.operator, ast.unaryop, ast.Load), set()
    for node in ast.walk(_tree(expressions[name])):
        match node:
            case ast.Constant(value=int() | float() | complex()):
                pass
            case ast.Call(func=ast.Name(id=function), keywords=[]) if (
                function in FUNCTIONS
            ):
                functions.add(node.func)
            case ast.BinOp() | ast.UnaryOp() if type(node.op) in OPERATIONS:
                pass
            case ast.Name() if node in functions or node.id in {*parameters, *NAMES}:
                pass
            case ast.Name() if node.id in expressions and node.id != name:
                if (wrong := _unknown_in(node.id, expressions, parameters)) is not None:
                    return wrong
            case _ if not isinstance(node, known):
                return ast.unparse(node) if isinstance(node, ast.expr) else "it"
    return None


def is_known(
    name: str, expressions: Mapping[str, str], parameters: Sequence[str]
) -> bool:
    return _unknown_in(name, expressions, parameters) is None


def check(name: str, expressions: Mapping[str, str], parameters: Sequence[str]) -> None:
    """Refuse an expression that cannot be a tie."""
    wrong = _unknown_in(name, expressions, parameters)
    if wrong is not None:
        raise ValueError(
            f"The expression {expressions[name]!r} of {name!r} has {wrong!r}, which "
            "cannot be compiled. Write it with + - * / ** and functions such as "
            "sqrt, exp, log, sin, or give a function of the parameters, "
            f"tie={{{name!r}: lambda p: ...}}, and set expr=''."
        )
