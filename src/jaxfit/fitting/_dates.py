"""Dates and spans of time as x: numbers of days or seconds, counted exactly."""

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxfit._programs.arrays import is_masked, kind_of_moments
from jaxfit._scipy.arguments import is_numbers

SHORT = np.timedelta64(2, "D")  # what spans less is counted in seconds
UNITS = {"D": "days", "s": "seconds"}
ONE = {"D": np.timedelta64(1, "D"), "s": np.timedelta64(1, "s")}
LONG = ("Y", "M")  # units without a length: dates are taken by their first day


class Dates(NamedTuple):
    """How dates become numbers: since when, and in which unit."""

    origin: np.datetime64 | None  # None: spans of time, which have none
    unit: str  # "D" or "s"

    @classmethod
    def of(cls, times: np.ndarray) -> "Dates":
        """Since the first of some dates, in the unit that goes with their span."""
        seen = times[~np.isnat(times)]
        if times.dtype.kind == "m":
            is_short = not seen.size or np.max(np.abs(seen)) < SHORT
            return cls(None, "s" if is_short else "D")
        if not seen.size:
            return cls(np.datetime64(0, "D"), "D")
        first = np.min(seen)
        return cls(first, "s" if np.max(seen) - first < SHORT else "D")

    @property
    def words(self) -> str:
        """What the numbers are."""
        if self.origin is None:
            return UNITS[self.unit]
        first = np.datetime_as_string(self.origin, unit="auto")
        return f"{UNITS[self.unit]} since {first}"

    def numbers(self, times: np.ndarray) -> Float[np.ndarray, "..."]:
        """Dates or spans as numbers; NaT is NaN."""
        is_date = times.dtype.kind == "M"
        if is_date is (self.origin is None):
            kinds = (
                ("dates", "spans of time") if is_date else ("spans of time", "dates")
            )
            raise TypeError(
                f"x has {kinds[0]}, and the fit was to {kinds[1]}; give those, or "
                f"numbers: {self.words}."
            )
        spans = times - self.origin if is_date else times
        return np.asarray(spans / ONE[self.unit])


class Dated(NamedTuple):
    """x in numbers, and what they count; None where it had no dates."""

    x: Any
    dates: Dates | None

    @classmethod
    def of(cls, x: Any, dates: Dates | None = None) -> "Dated":
        """x with its dates as numbers.

        Args:
            dates: how an earlier x was counted; None: by this one.
        """
        if isinstance(x, Dated):
            return x
        times = _times(x)
        if times is None:
            return cls(x, dates)
        plain = np.ma.getdata(times)
        counted = (
            Dates.of(plain[~np.ma.getmaskarray(times)]) if dates is None else dates
        )
        numbers = counted.numbers(plain)
        if is_masked(times):
            numbers = np.ma.MaskedArray(numbers, times.mask)
        return cls(numbers, counted)


def spans_as_numbers(
    values: Any, dates: Dates | None, name: str
) -> Float[np.ndarray, "..."] | None:
    """Spans of time in the unit of dates; None of what has none."""
    times = _times(values)
    if times is None:
        return None
    if dates is None or np.ma.getdata(times).dtype.kind != "m":
        raise TypeError(
            f"{name} has dates or spans of time; give numbers in the unit of x, or for "
            "dates as x spans of time."
        )
    numbers = np.asarray(np.ma.getdata(times) / ONE[dates.unit])
    return np.ma.MaskedArray(numbers, times.mask) if is_masked(times) else numbers


def _times(x: Any) -> np.ndarray | None:
    """An array of NumPy's dates or spans; None for anything else."""
    if isinstance(x, Mapping) or (isinstance(x, (list, tuple)) and not is_numbers(x)):
        return None
    dtype = getattr(x, "dtype", None)
    if dtype is not None and getattr(dtype, "kind", "O") not in "mMO":
        return None
    kinds = list, tuple, datetime.date, datetime.timedelta
    if not (hasattr(x, "__array__") or isinstance(x, kinds)):
        return None
    try:
        array = np.asanyarray(x)
    except ValueError:  # ragged lists
        return None
    kind = kind_of_moments(np.ma.getdata(array))
    if kind is None:
        return None
    if array.dtype.kind == "O":
        array = _of_objects(array)
    is_long = np.datetime_data(array.dtype)[0] in LONG
    if is_long and array.dtype.kind == "m":
        raise TypeError(
            f"x has the dtype {array.dtype}: months and years differ in length. Give "
            "spans in days, or dates."
        )
    if is_long:
        array = array.astype("M8[D]")
    return array


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Dates of Python or pandas as NumPy's; with a time zone by UTC."""
    flat = [_plain(one) for one in array.ravel()]
    kinds = {one.dtype.kind for one in flat if one is not None}
    if len(kinds) != 1 or not kinds <= {"m", "M"}:
        raise TypeError("x mixes dates with spans of time or what is neither.")
    nothing = np.datetime64("NaT", "s") if "M" in kinds else np.timedelta64("NaT", "s")
    dates = np.array([nothing if one is None else one for one in flat])
    return dates.reshape(array.shape)


def _plain(one: Any) -> Any:
    if one is None or one != one:  # NaN, NaT
        return None
    for convert in ("to_datetime64", "to_timedelta64"):  # pandas, to the nanosecond
        if hasattr(one, convert):
            return getattr(one, convert)()
    if isinstance(one, datetime.datetime) and one.tzinfo is not None:
        one = one.astimezone(datetime.UTC).replace(tzinfo=None)
    if isinstance(one, datetime.date):
        return np.datetime64(one)
    return (
        np.timedelta64(one)
        if isinstance(one, datetime.timedelta)
        else np.asarray(one)[()]
    )
