"""Choices: an index with a traced condition, or with the places where one holds."""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._numpy.asked import Uncounted
from jaxfit._numpy.indices import at_traced, is_view
from jaxfit._numpy.inside import as_index, is_choice
from jaxfit._numpy.memory import Owner, Value
from jaxfit._numpy.needs import require
from jaxfit._numpy.picked import Picked, picked_where, require_same, written_where
from jaxfit._numpy.traced import Traced
from jaxfit._numpy.values import is_known, stand_in

Index = Any


class _Choice(NamedTuple):
    part: Traced  # of the array, of which the mask picks along the first axes
    ndim: int  # how many axes
    mask: jax.Array  # in one dimension
    places: tuple[Value, ...]  # along each axis for the mask's elements; none: its own


def picked(array: Traced, index: Index) -> Picked:
    """The elements that are chosen, with memory of their own."""
    choice = _choice(array, index)
    value = choice.part._cell.read()
    if not choice.places:
        return picked_where(_flat(value, choice), choice.mask)
    for places, size in zip(choice.places, value.shape, strict=False):
        is_inside = (places >= -size) & (places < size)
        require(jnp.all(is_inside | ~choice.mask))
    return picked_where(at_traced(value, choice.places), choice.mask)


def write(array: Traced, index: Index, part: Any) -> None:
    """Do `array[index] = part`, of which the index chooses or the part is picked."""
    choice = _choice(array, index)
    if choice.places:
        _refuse("writes to places that are computed from a parameter")
    whole = choice.part._cell.read()
    new = written_where(_flat(whole, choice), choice.mask, part)
    choice.part._cell.write(new.reshape(whole.shape))


def places(value: jax.Array) -> tuple[Picked, ...]:
    """Where the value is not zero, as np.nonzero says."""
    mask = (value if value.dtype == bool else value != 0).reshape(-1)
    indices = np.unravel_index(np.arange(mask.size), value.shape)
    return tuple(Picked(Owner(index), mask) for index in indices)


def _choice(array: Traced, index: Index) -> _Choice:
    parts = index if isinstance(index, tuple) else (index,)
    at = [k for k, part in enumerate(parts) if _is_mask_or_places(part)]
    if not at or at[-1] - at[0] >= len(at):
        _refuse("chooses by conditions on parameters at several places of an index")
    chosen, before, after = (
        parts[at[0] : at[-1] + 1],
        parts[: at[0]],
        parts[at[-1] + 1 :],
    )
    by_places = all(isinstance(part, Picked) for part in chosen)
    condition = None if by_places else jnp.asarray(as_index(chosen[0]))
    ndim = len(chosen) if condition is None else condition.ndim
    around = (*before, *[slice(None)] * ndim, *after)
    has_numbers = all(hasattr(part, "__index__") for part in before)
    if not (has_numbers and is_view(around) and (ndim or len(parts) == 1)):
        _refuse("chooses by a condition on a parameter, beside more in the index")
    part = array if len(around) == ndim else array[around]
    if condition is None:
        return _by_places(part, chosen)
    if len(chosen) > 1:
        _refuse("chooses by several conditions on parameters in one index")
    _ = stand_in(part.shape)[np.zeros(condition.shape, bool)]  # IndexError
    mask = condition if condition.ndim == 1 else condition.reshape(-1)
    return _Choice(part, ndim, mask, ())


def _by_places(part: Traced, chosen: Sequence[Picked]) -> _Choice:
    """The choice by what np.nonzero gives, or by numbers computed from it."""
    mask = chosen[0].mask
    for axis in chosen:
        require_same(mask, axis.mask)
        if axis.ndim != 1 or axis.dtype.kind not in "iu":
            _refuse("takes picked elements as an index")
    indices = tuple(axis.whole for axis in chosen)
    shape = part.shape[: len(indices)]
    if len(shape) < len(indices):
        raise IndexError(f"too many indices for an array of shape {part.shape}")
    if is_known(list(indices)) and np.prod(shape, dtype=int) == mask.size:
        own = np.unravel_index(np.arange(mask.size), shape)
        indices = () if all(map(np.array_equal, indices, own)) else indices
    return _Choice(part, len(shape), mask, indices)


def _is_mask_or_places(part: Any) -> bool:
    if is_choice(part):
        return True
    return np.dtype(getattr(part, "dtype", int)) == bool  # beside what is picked


def _flat(value: Value, choice: _Choice) -> Value:
    """The value with one axis for those that the mask is of."""
    if choice.ndim == 1:
        return value
    return value.reshape(choice.mask.size, *value.shape[choice.ndim :])


def _refuse(what: str) -> NoReturn:
    Uncounted().refuse(what)
