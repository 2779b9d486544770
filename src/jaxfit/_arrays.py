"""Arrays as users have them: with masks, and in the byte order of another machine.

One rule for masked arrays holds at every entrance. Where points can be left out - x, y
and sigma of `fit`, `fit_batch` and `curve_fit`, x and y of `Model.guess` - a masked one
does not count, whatever is said of NaN. Everywhere else a masked element is refused,
since there is no number to compute with. A mask under which nothing lies makes no
difference. (Objects of xarray and pandas have NaN in place of masks.)
"""

from typing import Any, TypeGuard

import jax
import numpy as np

ARGUMENTS = "x0", "data", "bounds", "weights"


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


def moments(values: np.ndarray) -> np.ndarray:
    """Dates and times as numbers in their own unit, dates since 1970, NaT as NaN."""
    return np.where(np.isnat(values), np.nan, values.astype(float))


def native(leaf: Any) -> Any:
    """An array of NumPy without its mask, in the byte order of this machine."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    leaf = np.ma.getdata(leaf)
    return leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))


def ordinary(arguments: tuple, names: tuple[str, ...] = ARGUMENTS) -> tuple:
    """Arguments whose arrays JAX takes: without masks, in this machine's byte order.

    Raises:
        ValueError: for an argument with a masked element, by its name.
    """
    leaves, structure = jax.tree.flatten(arguments)
    if not any(map(_is_unusual, leaves)):
        return arguments
    refuse_masks(arguments, names)
    return jax.tree.unflatten(structure, [native(leaf) for leaf in leaves])


def _is_unusual(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and (
        not leaf.dtype.isnative or isinstance(leaf, np.ma.MaskedArray)
    )
