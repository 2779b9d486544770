"""A fit in a file that holds no code."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxfit import losses, models
from jaxfit._core.options import Options
from jaxfit._rows.predictions import with_numbers
from jaxfit._scipy.observations import Points
from jaxfit.fitting._arguments import ProblemAndStarts, method_from, problem_from
from jaxfit.fitting._dates import Dates
from jaxfit.fitting._functions import Asked, with_functions
from jaxfit.fitting._numbers import Numbers
from jaxfit.fitting._points import Observed
from jaxfit.fitting._priors import restored, stored
from jaxfit.fitting._problem import Problem
from jaxfit.fitting._record import Record
from jaxfit.fitting._several import Several
from jaxfit.losses import Likelihood, Loss
from jaxfit.models import FunctionModel, Model, Product, Sum, as_model
from jaxfit.models._binned import Binned

FORMAT = 1
NUMBERS = "numbers_"  # stands before their names


class _File(NamedTuple):
    """What stands in a file."""

    head: dict[str, Any]  # plain data
    arrays: dict[str, np.ndarray]


def save(record: Record, path: Any) -> None:
    """Write a fit to one file, see `Fit.save`."""
    if record.together is not None:
        raise ValueError(
            "This is one of many data sets that share parameters, and a file holds one "
            "fit alone. Keep all: fit_batch(...).to_xarray().to_netcdf(path)."
        )
    problem, method, observed = record.problem, record.method, record.observed
    x_leaves, x_structure = jax.tree.flatten(observed.data.x)
    head = {
        "format": FORMAT,
        "model": _described(record.model),
        "origin": None if problem.origin is None else float(problem.origin),
        "ties": sorted(problem.ties),
        "is_complex": observed.is_complex,
        "dates": _dates_form(observed.dates),
        "x": _x_form(observed.data.x, x_structure),
        "absolute_sigma": record.absolute_sigma,
        "covariance": method.covariance.value,
        "loss": _loss_form(method.loss),
        "likelihood": _likelihood_form(observed.likelihood),
        "options": _options_form(method.options),
        "minima": record.minima,
        "remarks": record.remarks,
        "fixed": {n: float(v) for n, v in problem.fixed.items()},
        "prior": stored(problem.prior),
    }
    arrays: dict[str, Any] = {f"x{i}": leaf for i, leaf in enumerate(x_leaves)}
    arrays |= {f"sigma_x{i}": leaf for i, leaf in enumerate(observed.sigma_x or ())}
    arrays |= {
        "y": observed.data.y,
        "sigma": observed.data.sigma,
        "valid": observed.valid,
        "lower": problem.lower,
        "upper": problem.upper,
    }
    numbers = record.numbers._asdict()
    arrays |= {f"{NUMBERS}{name}": value for name, value in numbers.items()}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    temporary = f"{os.fspath(path)}.part"
    with open(temporary, "wb") as file:
        np.savez(file, head=np.array(json.dumps(head)), **arrays)
    os.replace(temporary, path)


def load(path: Any, model: Any = None, tie: Mapping[str, Any] | None = None) -> Record:
    """What `save` wrote, see `Fit.load`."""
    file = _read(path)
    head, arrays = file.head, file.arrays
    minima = head["minima"] and [(cost, count) for cost, count in head["minima"]]
    leaves = [arrays[f"x{i}"] for i in range(len(arrays)) if f"x{i}" in arrays]
    data = Points(_x_from(head["x"], leaves), arrays["y"], arrays.get("sigma"))
    shapes = head["model"].get("shapes")
    observed = Observed(
        data=data,
        shapes=shapes and tuple(map(tuple, shapes)),
        valid=arrays.get("valid"),
        is_complex=head.get("is_complex", False),
        dates=_dates_from(head.get("dates")),
        sigma_x=_errors_from(arrays, len(leaves)),
        likelihood=_likelihood_from(head.get("likelihood")),
    )
    loss = head["loss"] and getattr(losses, head["loss"][0])(head["loss"][1])
    if observed.likelihood is not None:
        loss = with_numbers(observed.likelihood, 1.0)
    record = Record(
        problem=_problem_from(file, path, model, tie or {}).for_data(observed),
        observed=observed,
        method=method_from(
            loss,
            _options_from(head["options"]),
            head["absolute_sigma"],
            head["covariance"],
        ),
        numbers=_numbers_from(arrays),
        minima=minima,
        remarks=tuple(head.get("remarks", ())),
    )
    return _in_jax(record)


def _in_jax(record: Record) -> Record:
    """With the user's functions as functions of JAX."""
    observed = record.observed

    def with_these(asked: Asked) -> Record:
        asked.check(observed.data, record.numbers)
        return dataclasses.replace(record, problem=asked.problem)

    asked = ProblemAndStarts(record.problem, dict(record.values))
    return with_functions(asked, observed.data.x, with_these, host=False)


def _read(path: Any) -> _File:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays.pop("head")))
        if head["format"] != FORMAT:
            raise ValueError(f"format {head['format']}, not {FORMAT}")
    except (ValueError, KeyError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no file of Fit.save: {error}") from error
    return _File(head, arrays)


def _problem_from(
    file: _File, path: Any, model: Any, ties: Mapping[str, Any]
) -> Problem:
    head = file.head
    chosen = _restored(head["model"], model)
    if sorted(ties) != head["ties"]:
        raise ValueError(
            f"The fit in {path} ties {', '.join(head['ties']) or 'nothing'}; give the "
            "same names in tie=, whose functions are not stored."
        )
    problem, _ = problem_from(chosen, fixed=head["fixed"], tie=ties)
    origin = head.get("origin")
    return dataclasses.replace(
        problem,
        prior=restored(head["prior"]),
        lower=file.arrays.get("lower"),
        upper=file.arrays.get("upper"),
        origin=None if origin is None else np.float64(origin),
    )


def _numbers_from(arrays: Mapping[str, np.ndarray]) -> Numbers:
    """The numbers of a file; of older versions it may lack some, and have more."""
    numbers = {
        name: arrays[f"{NUMBERS}{name}"]
        for name in Numbers._fields
        if f"{NUMBERS}{name}" in arrays
    }
    numbers.setdefault("determined", np.isfinite(numbers["errors"]))
    return Numbers(**{n: v if v.ndim else v.item() for n, v in numbers.items()})


def _errors_from(arrays: Mapping[str, np.ndarray], number: int) -> tuple | None:
    """The errors of so many coordinates, None of one that is exact."""
    errors = tuple(arrays.get(f"sigma_x{i}") for i in range(number))
    return None if all(error is None for error in errors) else errors


def _described(model: Model) -> dict[str, Any]:
    """A model as plain data."""
    if isinstance(model, Several):
        return {
            "kind": "Several",
            "base": _described(model.base),
            "local": model.local,
            "shapes": model.shapes,
        }
    if isinstance(model, Binned):
        return {"kind": "Binned", "base": _described(model.base)}
    if isinstance(model, (Sum, Product)):
        members = [_described(member) for member in model.members]
        return {"kind": type(model).__name__, "members": members}
    kind = type(model).__name__
    if isinstance(model, FunctionModel) or getattr(models, kind, None) is not type(
        model
    ):
        return {"kind": None, "label": model.label, "names": list(model.names)}
    settings = {
        field.name: getattr(model, field.name) for field in dataclasses.fields(model)
    }
    return {"kind": kind, "settings": settings}


def _restored(form: Mapping[str, Any], model: Any) -> Model:
    """The model of a file, or the user's in its place."""
    if form["kind"] == "Several":
        shapes = tuple(map(tuple, form["shapes"]))
        return Several(_restored(form["base"], model), tuple(form["local"]), shapes)
    if form["kind"] == "Binned":
        return Binned(_restored(form["base"], model))
    if model is not None:
        model, names = as_model(model), _names(form)
        if list(model.names) != names:
            raise ValueError(
                f"The model has the parameters {', '.join(model.names)}; the fit that "
                f"was saved has {', '.join(names)}."
            )
        return model
    if form["kind"] is None:
        raise ValueError(
            f"The fit is one of {form['label']}, whose code is not stored; give it: "
            "Fit.load(path, model)."
        )
    kind = getattr(models, form["kind"])
    if "members" in form:
        return kind(tuple(_restored(member, None) for member in form["members"]))
    return kind(**form["settings"])


def _names(form: Mapping[str, Any]) -> list[str]:
    if form["kind"] is None:
        return form["names"]
    if "members" in form:
        return [name for member in form["members"] for name in _names(member)]
    return list(_restored(form, None).names)


def _x_form(x: PyTree, structure: Any) -> str | list[str]:
    """How x is put together: an array, a tuple, or a dictionary."""
    if jax.tree_util.treedef_is_leaf(structure):
        return "array"
    if isinstance(x, (tuple, list)) and all(hasattr(leaf, "shape") for leaf in x):
        return "tuple"
    if isinstance(x, dict) and all(hasattr(leaf, "shape") for leaf in x.values()):
        return sorted(x)
    raise ValueError(
        "x is neither an array nor a tuple or dictionary of arrays, and cannot be "
        "stored."
    )


def _x_from(form: str | list[str], leaves: list[np.ndarray]) -> PyTree:
    if form == "array":
        return leaves[0]
    return tuple(leaves) if form == "tuple" else dict(zip(form, leaves, strict=True))


def _dates_form(dates: Dates | None) -> list[Any] | None:
    if dates is None or dates.origin is None:
        return dates and [None, None, dates.unit]
    kind, count = np.datetime_data(dates.origin.dtype)
    return [str(dates.origin), f"{count}{kind}", dates.unit]


def _dates_from(form: list[Any] | None) -> Dates | None:
    if form is None:
        return None
    text, kind, unit = form
    return Dates(None if text is None else np.datetime64(text, kind), unit)


def _loss_form(loss: Loss | Likelihood | None) -> list[Any] | None:
    if not isinstance(loss, Loss):
        return None
    return [_name_of(loss, "loss"), float(loss.scale)]


def _name_of(loss: Loss | Likelihood, what: str) -> str:
    name = type(loss).__name__
    if getattr(losses, name, None) is not type(loss):
        raise ValueError(f"The {what} {name} is one of your own, which is not stored.")
    return name


def _likelihood_form(likelihood: Likelihood | None) -> list[Any] | None:
    """Its name and its numbers; None for those of each point, which are apart."""
    if likelihood is None:
        return None
    leaves = jax.tree.leaves(likelihood, is_leaf=lambda leaf: leaf is None)
    numbers = [None if leaf is None else float(leaf) for leaf in leaves]
    return [_name_of(likelihood, "likelihood"), numbers]


def _likelihood_from(form: list[Any] | None) -> Likelihood | None:
    if form is None:
        return None
    name, numbers = form
    example = getattr(losses, name)(*[1.0] * len(numbers))
    return jax.tree.unflatten(jax.tree.structure(example), numbers)


def _options_form(options: Options | None) -> dict[str, Any] | None:
    if options is None:
        return None
    if callable(options.jac):
        raise ValueError(
            "options has a jac of your own, a function, which is not stored. Fit "
            "without it, or pickle the fit."
        )
    values = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
    }
    return {
        name: v if v is None or isinstance(v, str) else np.asarray(v).tolist()
        for name, v in values.items()
    }


def _options_from(form: Mapping[str, Any] | None) -> Options | None:
    """Options; a file may lack some, which then have their defaults."""
    if form is None:
        return None
    values = dict(form)
    if isinstance(values.get("x_scale"), list):
        values["x_scale"] = np.asarray(values["x_scale"])
    return Options(**values)
