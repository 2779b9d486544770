"""Models from a text: "gaussian + b_gaussian * step + polynomial(2)"."""

import re
from typing import Any

from jaxfit import models
from jaxfit.models._model import Model

NOT_BY_NAME = models.Model, models.FunctionModel, models.Sum, models.Product

_TOKEN = re.compile(r"\s*(?:([A-Za-z_]\w*)|(\d+)|([+*()]))")


def library() -> dict[str, type[Model]]:
    """All models of the library by their lower-case names."""
    kinds = {name.lower(): getattr(models, name) for name in models.__all__}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and kind not in NOT_BY_NAME
    }


def parse(text: str) -> Model:
    """A model from names of the library, `+`, `*`, parentheses and prefixes.

    A prefix and its underscore stand before the name, `b_gaussian`; a polynomial's
    degree and the form of a step behind it, `polynomial(2)`, `step(arctan)`.

    Raises:
        ValueError: for what is none, with the place and the nearest names.
    """
    tokens, position = [], 0
    text = text.rstrip()
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

    def __init__(self, text: str, tokens: list[str]):
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
            found = repr(self.tokens[0]) if self.tokens else "the end"
            raise self.error(f"a model is expected, not {found}")
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
            own = [f for f in ("degree", "form") if f in kind.__dataclass_fields__]
            if not own or not self.accepts(")"):
                raise self.error(f"{name}({value} takes nothing in parentheses")
            settings[own[0]] = int(value) if value.isdigit() else value
        return kind(**settings)

    def accepts(self, token: str) -> bool:
        if self.tokens and self.tokens[0] == token:
            self.tokens.pop(0)
            return True
        return False

    def error(self, what: str) -> ValueError:
        return ValueError(f"The model {self.text!r} cannot be read: {what}.")


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name.lower().rpartition("_")[2], library(), 3)
    hint = f"did you mean {' or '.join(near)}" if near else "see jaxfit.models.__all__"
    return f"there is no model {name!r}; {hint}"
