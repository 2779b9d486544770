"""Arrays as users have them: with masks, and in the byte order of another machine.

One rule for masked arrays holds at every entrance. Where points can be left out - x, y
and sigma of `fit`, `fit_batch` and `curve_fit`, x and y of `Model.guess` - a masked one
does not count, whatever is said of NaN. Everywhere else a masked element is refused,
since there is no number to compute with. A mask under which nothing lies makes no
difference. (Objects of xarray and pandas have NaN in place of masks.)
"""

import datetime
from typing import Any, TypeGuard

import jax
import numpy as np

ARGUMENTS = "x0", "data", "bounds", "weights"
NO_NUMBERS = "mMOUS"  # kinds of NumPy's dtypes: times, dates, objects and texts


def is_masked(value: Any) -> TypeGuard[np.ma.MaskedArray]:
    """Whether it is an array with a masked element."""
    return isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value)


def refuse_masks(arguments: tuple, names: tuple[str, ...] = ARGUMENTS) -> None:
    """Refuse masked elements: nothing can be left out of these arguments."""
    if not any(map(is_masked, jax.tree.leaves(arguments))):
        return
    for name, argument in zip(names, arguments, strict=True):
        for path, leaf in jax.tree.leaves_with_path(argument):
            if is_masked(leaf):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} is a masked array with "
                    f"{np.ma.count_masked(leaf)} of its {leaf.size} elements masked, "
                    "and here nothing can be left out. Fill in numbers, and give the "
                    "residuals that they lead to weight zero, or leave the points out "
                    "of all arrays alike."
                )


def with_nan(value: Any) -> Any:
    """The value, with NaN (or NaT) where it is masked."""
    if not is_masked(value):
        return value
    if value.dtype.kind in "mM":
        nothing: Any = np.array("NaT", value.dtype)
        return value.filled(nothing)
    as_floats: Any = value.astype(float) if value.dtype.kind in "biu" else value
    return as_floats.filled(np.nan)


def kind_of_moments(values: np.ndarray) -> str | None:
    """ "M" for dates, "m" for times, also as Python's objects; else None."""
    if values.dtype.kind in "mM":
        return values.dtype.kind
    if values.dtype.kind != "O" or not values.size:
        return None
    one = values.flat[0]
    if isinstance(one, (datetime.date, np.datetime64)):
        return "M"
    return "m" if isinstance(one, (datetime.timedelta, np.timedelta64)) else None


def in_a_unit(values: np.ndarray) -> str:
    """What to do with dates or times."""
    span = "(t - t[0])" if kind_of_moments(values) == "M" else "t"
    if values.dtype.kind == "O":
        span = f"np.asarray({span.strip('()')}, 'timedelta64[us]')"
    return (
        "give numbers in a unit of your choice, such as "
        f"{span} / np.timedelta64(1, 's')."
    )


def moments(values: np.ndarray) -> np.ndarray:
    """Dates and times as numbers in their own unit, dates since 1970, NaT as NaN."""
    return np.where(np.isnat(values), np.nan, values.astype(float))


def native(leaf: Any) -> Any:
    """An array of NumPy without its mask, in the byte order of this machine."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    leaf = np.ma.getdata(leaf)
    return leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))


def is_extended(leaf: Any) -> bool:
    """Whether it is of a type that NumPy has not, such as keys of random numbers."""
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended)


def ordinary(arguments: tuple, names: tuple[str, ...] = ARGUMENTS) -> tuple:
    """Arguments whose arrays JAX takes: without masks, in this machine's byte order.

    Raises:
        ValueError: for an argument with a masked element, by its name.
        TypeError: for one with dates, texts or objects.
    """
    leaves, structure = jax.tree.flatten(arguments)
    if not any(map(_is_unusual, leaves)):
        return arguments
    refuse_masks(arguments, names)
    _refuse_what_is_no_number(arguments, names)
    return jax.tree.unflatten(structure, [native(leaf) for leaf in leaves])


def _is_unusual(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and (
        not leaf.dtype.isnative
        or isinstance(leaf, np.ma.MaskedArray)
        or leaf.dtype.kind in NO_NUMBERS
    )


def _refuse_what_is_no_number(arguments: tuple, names: tuple[str, ...]) -> None:
    for name, argument in zip(names, arguments, strict=True):
        for path, leaf in jax.tree.leaves_with_path(argument):
            if not (isinstance(leaf, np.ndarray) and leaf.dtype.kind in NO_NUMBERS):
                continue
            is_moments = kind_of_moments(leaf) is not None
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} has the dtype {leaf.dtype}; "
                + (in_a_unit(leaf) if is_moments else "expected an array of numbers.")
            )
