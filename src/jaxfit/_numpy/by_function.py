"""What an array does by NumPy's functions: operators, and methods of the same name."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class ByFunction(NDArrayOperatorsMixin):
    """Operators and methods that call the function of NumPy which does the same."""

    __slots__ = ()
    _is_scalar: bool  # a number, which does not change in place


def _in_place(ufunc: np.ufunc) -> Callable:
    def method(self: ByFunction, other: Any) -> Any:
        return ufunc(self, other, **({} if self._is_scalar else {"out": (self,)}))

    return method


def _by_function(function: Callable) -> Callable:
    def method(self: ByFunction, *arguments: Any, **keywords: Any) -> Any:
        return function(self, *arguments, **keywords)

    return method


_OPERATORS = {
    "iadd": np.add,
    "isub": np.subtract,
    "imul": np.multiply,
    "itruediv": np.true_divide,
    "ifloordiv": np.floor_divide,
    "imod": np.remainder,
    "ipow": np.power,
    "imatmul": np.matmul,
    "iand": np.bitwise_and,
    "ior": np.bitwise_or,
    "ixor": np.bitwise_xor,
    "ilshift": np.left_shift,
    "irshift": np.right_shift,
}
for _name, _ufunc in _OPERATORS.items():
    setattr(ByFunction, f"__{_name}__", _in_place(_ufunc))
_METHODS = (  # as the functions of their names
    *("sum mean std var prod min max argmin argmax cumsum cumprod dot".split()),
    *("round repeat take any all diagonal trace argsort".split()),
    *("searchsorted compress".split()),
    # NumPy calls them for each object in an array
    *("exp exp2 expm1 log log2 log10 log1p sqrt cbrt square sin cos tan".split()),
    *("arcsin arccos arctan arctan2 sinh cosh tanh arcsinh arccosh arctanh".split()),
    *("degrees radians deg2rad rad2deg rint fabs hypot".split()),
)
for _name in _METHODS:
    setattr(ByFunction, _name, _by_function(getattr(np, _name)))
