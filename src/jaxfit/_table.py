"""Tables of text as people have them: with names or without, either decimal mark."""

import csv
import datetime
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

COMMENT = "#"
EMPTY = {"", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "--"}  # in any case
WITH_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?|[+-]?\d+([eE][+-]?\d+)?")
SPREADSHEET = re.compile(r"sep=(.)", re.IGNORECASE)  # a first line of Excel's

Dates = np.ndarray  # datetime64


class Wrong(Exception):
    """What the user gave is wrong; one sentence."""


class Table(NamedTuple):
    """Columns of text, and where they come from."""

    path: str
    names: list[str]
    rows: list[list[str]]
    first: int  # the number of the first row, counted with a line of names
    has_commas: bool  # cells may be numbers with a decimal comma

    @classmethod
    def read(cls, path: str, wanted: list[str]) -> "Table":
        """The table in a file.

        The first line has the names of the columns. If it has numbers, they have none
        but for those of a comment just above it, and are called 1, 2, 3 and so on.

        Args:
            wanted: names of columns that are asked for.
        """
        lines = _text(path).splitlines()
        lines = [line for line in lines if line.strip()]
        delimiter = None
        if lines and (sign := SPREADSHEET.fullmatch(lines[0].strip())):
            delimiter, lines = sign[1], lines[1:]
        plain = [line for line in lines if not _is_comment(line)]
        if not plain:
            raise Wrong(f"{path} has no rows.")
        delimiter = _delimiter(plain) if delimiter is None else delimiter
        rows, has_commas = _cells(plain, delimiter), delimiter != ","
        if _are_names(rows[0], wanted, has_commas):
            if len(rows) < 2:
                raise Wrong(f"{path} has no rows below a line of names.")
            names, rows, first = rows[0], rows[1:], 2
        else:
            names, first = _names_above(lines, plain[0], delimiter, len(rows[0])), 1
        for number, row in enumerate(rows, start=first):
            if len(row) != len(names):
                above = "the line of names" if first == 2 else "the first"
                raise Wrong(
                    f"{path}: row {number} has {len(row)} cells, {above} {len(names)}."
                )
        return cls(path, names, rows, first, has_commas)

    def column(self, name: str) -> Float[np.ndarray, " m"] | Dates:
        """A column, by its name or else by its number from 1; of numbers or dates."""
        cells = self._texts(name)
        some = next((cell for cell in cells if cell.lower() not in EMPTY), "")
        values: list[Any]
        if _date(some) is not None and _number(some, self.has_commas) is None:
            kind, what, empty = "M8[us]", "date", np.datetime64("NaT", "us")
            values = [_date(cell) for cell in cells]
        else:
            kind, what, empty = "f8", "number", np.nan
            self._check_marks(name, cells)
            values = [_number(cell, self.has_commas) for cell in cells]
        for k, cell in enumerate(cells):
            if cell.lower() in EMPTY:
                values[k] = empty
            elif values[k] is None:
                raise Wrong(
                    f"{self.path}: column {name!r} has {cell!r} in row "
                    f"{k + self.first}, which is no {what}."
                )
        return np.array(values, kind)

    def _texts(self, name: str) -> list[str]:
        place = self.names.index(name) if name in self.names else None
        if place is None and name.isdecimal() and 1 <= int(name) <= len(self.names):
            place = int(name) - 1
        if place is None:
            raise Wrong(
                f"{self.path} has no column {name!r}; it has {', '.join(self.names)}."
            )
        return [row[place] for row in self.rows]

    def _check_marks(self, name: str, cells: list[str]) -> None:
        """Refuse a column in which commas and points may mean either."""
        if not self.has_commas:
            return
        comma = next((cell for cell in cells if "," in cell), None)
        point = next((cell for cell in cells if "." in cell), None)
        if comma and point and _number(comma, True) is not None:
            raise Wrong(
                f"{self.path}: column {name!r} has {comma!r} and {point!r}: is a comma "
                "or a point the decimal mark? Write one, and no marks of thousands."
            )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise Wrong(f"{path} cannot be read: {reason}.") from error


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(COMMENT)


def _delimiter(lines: list[str]) -> str | None:
    """What stands between the cells; None for white space."""
    for delimiter in ";\t":
        if delimiter in lines[0]:
            return delimiter
    last = lines[-1].split()
    if "," not in lines[0] or (len(last) > 1 and all(map(WITH_COMMA.fullmatch, last))):
        return None
    return ","


def _cells(lines: list[str], delimiter: str | None) -> list[list[str]]:
    if delimiter is None:
        return [line.split() for line in lines]
    rows = csv.reader(lines, delimiter=delimiter)
    return [[cell.strip() for cell in row] for row in rows]


def _are_names(row: list[str], wanted: list[str], has_commas: bool) -> bool:
    """Whether a first row has the names of columns, which may be numbers."""
    is_name = [
        _number(cell, has_commas) is None
        and _date(cell) is None
        and cell.lower() not in EMPTY
        for cell in row
    ]
    if any(is_name):
        return True
    numbers = {str(k) for k in range(1, len(row) + 1)}
    return not ({*wanted} & {*row}) <= numbers


def _names_above(
    lines: list[str], first: str, delimiter: str | None, number: int
) -> list[str]:
    """The names in a comment just above the first row, if it has them, or numbers."""
    above = lines[: lines.index(first)]
    if above:
        names = _cells([above[-1].lstrip(f"{COMMENT} \t")], delimiter)[0]
        if len(names) == number and len({*names}) == number:
            return names
    return [str(k) for k in range(1, number + 1)]


def _number(cell: str, has_commas: bool) -> float | None:
    """A number; of a cell that is none, None."""
    if has_commas and "," in cell and WITH_COMMA.fullmatch(cell):
        cell = cell.replace(",", ".")
    try:
        return float(cell)
    except ValueError:
        return None


def _date(cell: str) -> np.datetime64 | None:
    """A date as in ISO 8601, by UTC where it has a time zone; None if it is none."""
    try:
        date = datetime.datetime.fromisoformat(cell)
    except ValueError:
        return None
    if date.tzinfo is not None:
        date = date.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(date, "us")
