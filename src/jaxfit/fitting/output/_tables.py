"""Fits as dictionaries, data frames and xarray Datasets."""

import importlib
from typing import Any

import numpy as np

from jaxfit.fitting._batch_record import BatchRecord, Labels
from jaxfit.fitting._fitted import Parameter
from jaxfit.fitting._record import Record
from jaxfit.fitting.output._warnings import warnings


def needed(package: str) -> Any:
    """An optional package, or an error that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"This needs {package}, which is not installed: pip install {package}"
        ) from error


# One fit


def dictionary(record: Record) -> dict[str, Any]:
    """All numbers as plain Python, see `Fit.to_dict`."""
    return {
        "model": record.model.label,
        "success": bool(record.success),
        "status": record.status.name,
        "message": record.message,
        "nfev": record.nfev,
        "parameters": {n: _plain(p) for n, p in record.params.items()},
        "derived": {
            n: {"value": _number(p.value), "stderr": _number(p.stderr)}
            for n, p in record.derived.items()
        },
        "covariance": {
            "kind": record.covariance_kind,
            "names": list(record.varied),
            "matrix": [[_number(v) for v in row] for row in record.covariance],
        },
        "goodness": {n: _number(v) for n, v in record.goodness._asdict().items()},
        "minima": record.minima and [list(pair) for pair in record.minima],
        "warnings": warnings(record),
    }


def _plain(p: Parameter) -> dict[str, Any]:
    fields = {k: v for k, v in p._asdict().items() if k != "name"}
    fields = {k: _number(v) if isinstance(v, float) else v for k, v in fields.items()}
    return fields | {"undetermined": bool(p.undetermined)}


def _number(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value if np.isfinite(value) else None


def dataframe(record: Record) -> Any:
    """Parameters and derived quantities, see `Fit.to_dataframe`."""
    pandas = needed("pandas")
    parameters = [*record.params.values(), *record.derived.values()]
    return pandas.DataFrame([p._asdict() for p in parameters]).set_index("name")


def dataset(record: Record) -> Any:
    """Values, errors and covariance, see `Fit.to_xarray`."""
    xarray = needed("xarray")
    parameters = [*record.params.values(), *record.derived.values()]
    return xarray.Dataset(
        {
            "value": ("param", [p.value for p in parameters]),
            "stderr": ("param", [p.stderr for p in parameters]),
            "covariance": (("cov_i", "cov_j"), record.covariance),
        },
        coords={
            "param": [p.name for p in parameters],
            "cov_i": list(record.varied),
            "cov_j": list(record.varied),
        },
        attrs=record.goodness._asdict(),
    )


# Many fits


def batch_dataframe(record: BatchRecord) -> Any:
    """One row for each fit, see `BatchFit.to_dataframe`."""
    pandas = needed("pandas")
    errors = record.errors | record.derived_errors
    columns: dict[str, Any] = {}
    for name, values in (record.values | record.derived).items():
        columns[name] = np.broadcast_to(values, record.shape).ravel()
        columns[f"{name}_stderr"] = np.broadcast_to(errors[name], record.shape).ravel()
    columns["status"] = record.status.ravel()
    reduced = np.broadcast_to(record.reduced_chi_square, record.shape)
    columns["reduced_chi_square"] = reduced.ravel()
    index = None
    if len(record.shape) > 1:
        index = pandas.MultiIndex.from_product([range(n) for n in record.shape])
    return pandas.DataFrame(columns, index=index)


def batch_dataset(record: BatchRecord) -> Any:
    """Maps of values, errors and status, see `BatchFit.to_xarray`."""
    xarray = needed("xarray")
    labels = record.labels
    if labels is None:
        labels = Labels(tuple(f"dim_{k}" for k in range(len(record.shape))), {})
    errors = record.errors | record.derived_errors
    maps: dict[str, Any] = record.values | record.derived
    maps |= {f"{name}_stderr": values for name, values in errors.items()}
    for name in ("status", "success", "nfev", "chi_square", "reduced_chi_square"):
        maps[name] = getattr(record, name)
    return xarray.Dataset(
        {
            name: (labels.dims if np.ndim(values) else (), values)
            for name, values in maps.items()
        },
        coords=labels.coords,
        attrs={"model": record.model.label},
    )
