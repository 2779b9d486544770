"""Values that `jax.export` can write beside a program, and read in another process."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax import export

Kind = TypeVar("Kind", bound=type)
Dimension = Any  # an int, or a dimension that a program for any number leaves open


def exportable(cls: Kind) -> Kind:
    """A class whose instances may be inputs and outputs of a serialized program.

    Nothing of a value but its arrays is written, so that a class needs to be a
    NamedTuple or a Module without static fields: what JAX keeps beside the arrays is
    then the same for all of its instances.
    """
    name = f"jaxfit.{cls.__name__}"
    if issubclass(cls, eqx.Module):
        beside = _beside_the_arrays(cls)
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name,
            serialize_auxdata=_nothing,
            deserialize_auxdata=lambda _: beside,
        )
    else:
        export.register_namedtuple_serialization(cls, serialized_name=name)
    return cls


def _beside_the_arrays(cls: type[eqx.Module]) -> Any:
    """What JAX keeps of any instance beside its arrays, read from an empty one."""
    empty = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(empty, field.name, None)
    _, beside = jax.tree_util.default_registry.flatten_one_level(empty)
    return beside


def _nothing(_: Any) -> bytes:
    return b""
