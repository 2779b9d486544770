"""Formulas as MathML, made when the site is built: no script, no other server."""

import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}


def on_page_content(html: str, **_: object) -> str:
    return FORMULA.sub(_mathml, html)


def _mathml(formula: re.Match[str]) -> str:
    _, bracket, latex = formula.groups()
    for entity, character in ENTITIES.items():
        latex = latex.replace(entity, character)
    return convert(latex, display="block" if bracket == "[" else "inline")
