"""A fit as a dictionary, a table, and a file that holds no code."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxfit import losses, models
from jaxfit._core.options import Options
from jaxfit._programs.call import Static
from jaxfit._scipy.observations import Points
from jaxfit.fitting._points import Observed
from jaxfit.fitting._problem import pose
from jaxfit.fitting._programs import Manner
from jaxfit.models import FunctionModel, Model, Product, Sum, as_model

if TYPE_CHECKING:
    from jaxfit.fitting._result import Fit

FORMAT = 1


def to_dict(self: "Fit") -> dict[str, Any]:
    """All numbers as plain Python: what `json` takes; NaN and infinity are None."""
    fit = self
    return {
        "model": fit.model.label,
        "success": bool(fit.success),
        "status": fit.status.name,
        "message": fit.message,
        "nfev": fit.nfev,
        "parameters": {n: _plain(p) for n, p in fit.params.items()},
        "derived": {
            n: {"value": _number(p.value), "stderr": _number(p.stderr)}
            for n, p in fit.derived.items()
        },
        "covariance": {
            "kind": fit.covariance_kind,
            "names": list(fit.varied),
            "matrix": [[_number(v) for v in row] for row in fit.covariance],
        },
        "goodness": {n: _number(v) for n, v in fit.goodness._asdict().items()},
        "minima": fit.minima and [list(pair) for pair in fit.minima],
        "warnings": fit.warnings(),
    }


def _plain(p) -> dict[str, Any]:
    own = {k: v for k, v in p._asdict().items() if k != "name"}
    own = {k: _number(v) if isinstance(v, float) else v for k, v in own.items()}
    return own | {"undetermined": bool(p.undetermined)}


def _number(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value if np.isfinite(value) else None


def to_dataframe(self: "Fit") -> Any:
    """Parameters and derived quantities as a pandas DataFrame."""
    pandas = needed("pandas")
    everything = [*self.params.values(), *self.derived.values()]
    return pandas.DataFrame([p._asdict() for p in everything]).set_index("name")


def to_xarray(self: "Fit") -> Any:
    """Values, errors and covariance as an xarray Dataset."""
    xarray = needed("xarray")
    everything = [*self.params.values(), *self.derived.values()]
    return xarray.Dataset(
        {
            "value": ("param", [p.value for p in everything]),
            "stderr": ("param", [p.stderr for p in everything]),
            "covariance": (("cov_i", "cov_j"), self.covariance),
        },
        coords={
            "param": [p.name for p in everything],
            "cov_i": list(self.varied),
            "cov_j": list(self.varied),
        },
        attrs=self.goodness._asdict(),
    )


def needed(package: str) -> Any:
    """An optional package, or an error that says how to get it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"This needs {package}, which is not installed: pip install {package}"
        ) from error


# Files


def save(self: "Fit", path: Any) -> None:
    """Write the fit to one npz file, of arrays and JSON, without pickles.

    A library's model is stored by name. A plain function is not: `Fit.load` then asks
    for it, and for ties. A loss of one's own and a function as `Options(jac=...)` are
    refused.
    """
    fit = self
    x_leaves, x_structure = jax.tree.flatten(fit.observed.data.x)
    head = {
        "format": FORMAT,
        "model": _described(fit.model),
        "origin": None if fit.problem.origin is None else float(fit.problem.origin),
        "ties": sorted(fit.problem.ties),
        "x": _x_form(fit.observed.data.x, x_structure),
        "absolute_sigma": fit.absolute_sigma,
        "covariance": fit.manner.covariance.value,
        "loss": _loss_form(fit.manner.loss),
        "options": _options_form(fit.manner.options),
        "minima": fit.minima,
        "remarks": fit.remarks,
        "fixed": {n: float(v) for n, v in fit.problem.fixed.items()},
        "prior": {n: list(map(float, v)) for n, v in fit.problem.prior.items()},
    }
    arrays: dict[str, Any] = {f"x{i}": leaf for i, leaf in enumerate(x_leaves)}
    arrays |= {"y": fit.observed.data.y}
    optional = {
        "sigma": fit.observed.data.sigma,
        "valid": fit.observed.valid,
        "lower": fit.problem.lower,
        "upper": fit.problem.upper,
    }
    arrays |= {name: value for name, value in optional.items() if value is not None}
    arrays |= {f"numbers_{name}": value for name, value in fit.numbers.items()}
    temporary = f"{os.fspath(path)}.part"
    with open(temporary, "wb") as file:
        np.savez(file, head=np.array(json.dumps(head)), **arrays)
    os.replace(temporary, path)


def load(path: Any, model: Any = None, tie: Mapping[str, Any] | None = None) -> "Fit":
    """A fit that `save` wrote; see `Fit.load`."""
    from jaxfit.fitting._result import Fit

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
    chosen = _restored(head["model"], model)
    ties = tie or {}
    if sorted(ties) != head["ties"]:
        raise ValueError(
            f"The fit in {path} ties {', '.join(head['ties']) or 'nothing'}; give the "
            "same names in tie=, whose functions are not stored."
        )
    problem, _ = pose(chosen, fixed=head["fixed"], tie=ties, prior=head["prior"])
    lower, upper = arrays.get("lower"), arrays.get("upper")
    origin = head.get("origin")
    origin = None if origin is None else np.float64(origin)
    problem = dataclasses.replace(problem, lower=lower, upper=upper, origin=origin)
    count = sum(1 for name in arrays if name[0] == "x" and name[1:].isdigit())
    leaves = [arrays[f"x{i}"] for i in range(count)]
    data = Points(_x_from(head["x"], leaves), arrays["y"], arrays.get("sigma"))
    numbers = {
        name.removeprefix("numbers_"): value if value.ndim else value.item()
        for name, value in arrays.items()
        if name.startswith("numbers_")
    }
    numbers.setdefault("determined", np.isfinite(numbers["errors"]))
    loss = head["loss"] and getattr(losses, head["loss"][0])(head["loss"][1])
    manner = Manner(
        *(loss, _options_from(head["options"])),
        np.bool_(head["absolute_sigma"]),
        Static(head["covariance"]),
    )
    minima = head["minima"] and [(cost, count) for cost, count in head["minima"]]
    return Fit(
        *(problem, Observed(data, arrays.get("valid")), manner),
        *(numbers, minima, tuple(head.get("remarks", ()))),
    )


def _described(model: Model) -> dict[str, Any]:
    """A model as plain data."""
    if isinstance(model, (Sum, Product)):
        members = [_described(member) for member in model.members]
        return {"kind": type(model).__name__, "members": members}
    kind = type(model).__name__
    if isinstance(model, FunctionModel) or getattr(models, kind, None) is not type(
        model
    ):
        return {"kind": None, "label": model.label, "names": list(model.names)}
    own = {
        field.name: getattr(model, field.name) for field in dataclasses.fields(model)
    }
    return {"kind": kind, "settings": own}


def _restored(form: Mapping[str, Any], given: Any) -> Model:
    """The model of a file, or the one that is given in its place."""
    if given is not None:
        given = as_model(given)
        names = _names(form)
        if list(given.names) != names:
            raise ValueError(
                f"The model has the parameters {', '.join(given.names)}; the fit that "
                f"was saved has {', '.join(names)}."
            )
        return given
    if form["kind"] is None:
        raise ValueError(
            f"The fit is one of {form['label']}, whose code is not stored; give it: "
            "Fit.load(path, model)."
        )
    kind = getattr(models, form["kind"])
    if "members" in form:
        return kind(tuple(_restored(member, None) for member in form["members"]))
    return kind(**form["settings"])


def _names(form) -> list[str]:
    if form["kind"] is None:
        return form["names"]
    if "members" in form:
        return [name for member in form["members"] for name in _names(member)]
    return list(_restored(form, None).names)


def _x_form(x: Any, structure: Any) -> Any:
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


def _x_from(form: Any, leaves: list) -> Any:
    if form == "array":
        return leaves[0]
    return tuple(leaves) if form == "tuple" else dict(zip(form, leaves, strict=True))


def _loss_form(loss: Any) -> Any:
    if loss is None:
        return None
    if getattr(losses, type(loss).__name__, None) is not type(loss):
        raise ValueError(
            f"The loss {type(loss).__name__} is one of your own, which is not stored."
        )
    return [type(loss).__name__, float(loss.scale)]


def _options_form(options: Any) -> Any:
    if options is None:
        return None
    if callable(options.jac):
        raise ValueError(
            "options has a jac of your own, a function, which is not stored. Fit "
            "without it, or pickle the fit."
        )
    own = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
    }
    return {
        name: v if v is None or isinstance(v, str) else np.asarray(v).tolist()
        for name, v in own.items()
    }


def _options_from(form: Any) -> Options | None:
    """Options; a file may lack some, which then have their defaults."""
    if form is None:
        return None
    own: dict[str, Any] = dict(form)
    if isinstance(own.get("x_scale"), list):
        own["x_scale"] = np.asarray(own["x_scale"])
    return Options(**own)
