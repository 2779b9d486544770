"""Models from functions, and from texts: "gaussian + b_gaussian * polynomial(2)"."""

import difflib
import functools
import re
import types
from typing import Any

from jaxfit.models import _curves, _images, _peaks, _waves
from jaxfit.models._model import FunctionModel, Model

_TOKEN = re.compile(r"\s*(?:([A-Za-z_]\w*)|(\d+)|([+*()]))")


def as_model(model: Any) -> Model:
    """A model from a model, a plain function, or a text such as "gaussian + linear"."""
    if isinstance(model, types.FunctionType):
        return _of_function(model)
    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        return parse(model)
    if isinstance(model, type) and issubclass(model, Model):
        raise TypeError(f"{model.__name__} is a class; write {model.__name__}().")
    if callable(model):
        return FunctionModel(model)
    raise TypeError(
        f"model is {model!r}; expected one of jaxfit.models, a sum or product of them, "
        "a function f(x, a, b, ...), or a text such as 'gaussian + linear'."
    )


@functools.lru_cache(maxsize=64)
def _of_function(function: types.FunctionType) -> FunctionModel:
    return FunctionModel(function)


@functools.cache
def library() -> dict[str, type[Model]]:
    """All models of the library by their lower-case names, in order."""
    kinds = {
        kind.__name__.lower(): kind
        for module in (_curves, _images, _peaks, _waves)
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Model)
        and kind.__module__ == module.__name__
    }
    return dict(sorted(kinds.items()))


def parse(text: str) -> Model:
    """A model from names of the library, `+`, `*`, parentheses and prefixes.

    A prefix and its underscore stand before the name, `b_gaussian`; a polynomial's
    degree and the form of a step behind it, `polynomial(2)`, `step(arctan)`.

    Raises:
        ValueError: for a text that names no model, with the place and near names.
    """
    tokens: list[str] = []
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(
                f"{text[position:].strip()[0]!r} in the model {text!r} means nothing; "
                "write names, +, * and parentheses, such as 'gaussian + linear'."
            )
        tokens.append(match.group().strip())
        position = match.end()
    return _Parser(text, tokens).whole()


class _Parser:
    """Recursive descent: a sum of products of names or sums in parentheses."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.text, self.tokens = text, tokens

    def whole(self) -> Model:
        model = self.sum()
        if self.tokens:
            raise self.error(f"{self.tokens[0]!r} is unexpected")
        return model

    def sum(self) -> Model:
        model = self.product()
        while self.accepts("+"):
            model = model + self.product()
        return model

    def product(self) -> Model:
        model = self.factor()
        while self.accepts("*"):
            model = model * self.factor()
        return model

    def factor(self) -> Model:
        if self.accepts("("):
            model = self.sum()
            if not self.accepts(")"):
                raise self.error("a closing parenthesis is missing")
            return model
        if not self.tokens or not self.tokens[0][0].isidentifier():
            token = repr(self.tokens[0]) if self.tokens else "the end"
            raise self.error(f"a model is expected, not {token}")
        return self.named(self.tokens.pop(0))

    def named(self, name: str) -> Model:
        prefix, _, short = name.lower().rpartition("_")
        kind = library().get(short)
        if kind is None:
            raise self.error(_unknown(name))
        settings: dict[str, Any] = {"prefix": name[: len(prefix) + 1] if prefix else ""}
        if self.accepts("("):
            if not self.tokens or self.tokens[0] in "+*()":
                raise self.error(f"{name}( lacks what stands in parentheses")
            value = self.tokens.pop(0)
            fields = [f for f in ("degree", "form") if f in kind.__dataclass_fields__]
            if not fields or not self.accepts(")"):
                raise self.error(f"{name}({value} takes nothing in parentheses")
            settings[fields[0]] = int(value) if value.isdigit() else value
        return kind(**settings)

    def accepts(self, token: str) -> bool:
        if self.tokens and self.tokens[0] == token:
            self.tokens.pop(0)
            return True
        return False

    def error(self, what: str) -> ValueError:
        return ValueError(f"The model {self.text!r} cannot be read: {what}.")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower().rpartition("_")[2], library(), 3)
    hint = f"did you mean {' or '.join(near)}" if near else "see jaxfit.models.__all__"
    return f"there is no model {name!r}; {hint}"
