"""Files of the repository outside of docs/, as pages of the site.

The first page is the README. Examples and the benchmarks' tables are shown; a link to
any other file leads to the repository where it has an address, and is else the name
alone.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^]]*)\]\(((?:\.\./)+)((?:\w+/)*[\w.]+)(#[\w-]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    for path in (*ROOT.glob("examples/*.py"), *ROOT.glob("bench/**/[A-Z]*.md")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if path.suffix == ".py":
            text = f"# `{path.name}`\n\n```python\n{text}```\n"
        files.append(File.generated(config, _page(name), content=text))
    return files


def on_page_markdown(
    markdown: str, *, page: Page, config: Any, files: Files, **_: Any
) -> str:
    if page.file.src_uri == "index.md":
        markdown = _readme()
    folder = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        text, up, name, place = found.groups()
        if posixpath.normpath(posixpath.join("docs", folder, up)) != ".":
            return found[0]  # within the site
        if files.get_file_from_path(_page(name)):
            relative = posixpath.relpath(_page(name), folder or ".")
            return f"[{text}]({relative}{place or ''})"
        if (ROOT / "docs" / name.removeprefix("docs/")).exists():
            return found[0]
        if not (ROOT / name).exists():
            raise ValueError(f"{page.file.src_uri} links to {name}, which is not there")
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{name})"
        return text

    return LINK.sub(link, markdown)


def _page(name: str) -> str:
    return "repository/" + name.removesuffix(".py").removesuffix(".md") + ".md"


def _readme() -> str:
    """The README as a page of the site."""
    text = (ROOT / "README.md").read_text()
    text = text.replace("](docs/", "](").replace("](CHANGELOG.md", "](changelog.md")
    return text.replace("](CONTRIBUTING.md", "](../CONTRIBUTING.md")
