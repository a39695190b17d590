"""Pieces of a page: whatever is put into one is text, unless it is a piece itself.

    tag("p", "kept ", tag("b", name), class_="word")

What could fetch, run or send something has no way in: tags and attributes stand on lists, links go
to places of the page itself, and control characters of strangers' texts are made visible.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from controlllm.common.text.readable import readable

__all__ = ["LONGEST", "REPORT", "Child", "Piece", "beginning", "cut", "is_page", "page", "tag"]

_WORDS = re.compile(r"\S+")
TAGS = frozenset(
    _WORDS.findall(
        "a article b circle code dd details div dl dt figcaption figure footer h1 h2 h3 header li "
        "line main nav p polyline pre rect section small span strong summary svg table tbody td "
        "text th thead title tr ul"
    )
)
ATTRIBUTES = frozenset(
    _WORDS.findall(
        "aria-hidden class colspan cx cy dir height href id open points r role rx scope "
        "tabindex text-anchor title transform viewbox width x x1 x2 y y1 y2"
    )
)
VIEW_BOX = "viewBox"
"""The one attribute with a capital letter."""
LONGEST = 1500
"""Characters of a text that a page shows."""

REPORT = "controlllm report"


def beginning(made_by: str) -> str:
    """Of every page that a verb makes: so it is told from files of others."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{escape(made_by)}">\n'
    )


def is_page(path: str | Path, made_by: str) -> bool:
    """Whether a file begins as the pages do that a verb makes."""
    start = beginning(made_by).encode()
    with open(path, "rb") as file:
        return file.read(len(start)) == start


Child = object
"""A piece, a text, a number, None (nothing), or any of them in a row."""


class Piece(str):
    """Markup that `tag` has made; every other text is escaped."""

    __slots__ = ()


def tag(name: str, *children: Child, **attributes: str | float | bool | None) -> Piece:
    """One element.

    Args:
        name: of the tag.
        children: what is in it, in this order.
        attributes: `class_` is `class`, `text_anchor` is `text-anchor`; None and False leave one
            out.

    Raises:
        ValueError: a tag, an attribute or a link is none that a page may have.
    """
    if name not in TAGS:
        raise ValueError(f"a page has no {name!r}")
    told = "".join(_attribute(key, value) for key, value in attributes.items())
    return Piece(f"<{name}{told}>{''.join(_flat(children))}</{name}>")


def page(
    title: str,
    style: str,
    head: Child,
    sections: Sequence[tuple[str, str, Child]],
    made_by: str = REPORT,
) -> str:
    """A whole document: its title, a head with links to all sections, the sections, a footer.

    Nothing may be fetched, run or sent; the style is known by its hash.

    Args:
        title: shown by the browser, and over the page.
        style: CSS of this package, put in as it is.
        head: what stands below the title.
        sections: (place, title, parts) of each; links lead to places.
        made_by: the verb, as `is_page` asks for it.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'"
    links = [tag("a", name, href=f"#{place}") for place, name, _ in sections]
    body = tag(
        "main",
        tag("header", tag("h1", title), head, tag("nav", links)),
        [tag("section", tag("h2", name), parts, id=place) for place, name, parts in sections],
        tag("footer", "Made by controlllm. All of it is in this file: nothing is loaded."),
    )
    return (
        f"{beginning(made_by)}"
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def cut(text: str, longest: int = LONGEST) -> str:
    """The beginning of a long text, with its whole length said."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text):,} characters in all)"


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Piece):
            yield child
        elif isinstance(child, str | int | float):
            yield _text(str(child))
        elif isinstance(child, Iterable):
            yield from _flat(child)
        else:
            raise TypeError(f"a page cannot show a {type(child).__name__}")


def _text(text: str) -> str:
    return escape(readable(text), quote=True)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if name.lower() not in ATTRIBUTES or (name != name.lower() and name != VIEW_BOX):
        raise ValueError(f"a page has no attribute {name!r}")
    if name == "href" and not re.fullmatch(r"#[a-z0-9-]+", str(value)):
        raise ValueError(f"a page links to its own places only, not to {value!r}")
    if value is True:
        return f" {name}"
    told = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{_text(told)}"'
