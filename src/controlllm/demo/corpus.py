"""The demo's two domains, read from the Python installation that runs it.

| domain | what it is |
|---|---|
| old, `"english"` | prose about Python: `pydoc` topics, the library's docstrings and comments |
| new, `"code"` | the same source files without docstrings and comments |

Everything is a pure function of the installation: files in sorted order, split by a hash of the
file's or topic's name, so that what is held out in one Python version is held out in the others.
The texts belong to the Python Software Foundation (PSF License Version 2); nothing of them is
copied into this repository.
"""

import ast
import io
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

from controlllm.common.errors import DataError
from controlllm.common.registry import check_choice

__all__ = ["Domain", "Split", "documents", "is_held_out", "library_files", "passages"]

Domain = Literal["english", "code"]
Split = Literal["train", "held_out"]

HELD_OUT_OF_100 = 12
"""How many of a hundred files or topics are held out."""

PASSAGE_CHARACTERS = 900
"""Documents are cut into passages of at most about so many characters."""

_LEFT_OUT = {
    # Tests are missing from many installations; the others are tools, data or on their way out.
    "__phello__", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3",
    "pydoc_data", "site-packages", "dist-packages", "test", "tests", "turtledemo", "__pycache__",
}  # fmt: skip
_PLAIN_WORD = re.compile(r"[(\"']*[A-Za-z]?[a-z'-]*[.,:;)\"'?!]*")
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def passages(domain: Domain, split: Split) -> list[str]:
    """The texts of a domain, cut into passages of whole paragraphs or lines.

    Raises:
        ConfigError: if there is no such domain or split.
        DataError: if this Python comes without the source files of its standard library.
    """
    separator = "\n\n" if domain == "english" else "\n"
    texts = documents(domain, split).values()
    return [passage for text in texts for passage in _cut(text, separator)]


def documents(domain: Domain, split: Split) -> dict[str, str]:
    """The whole texts of a domain by name (a path inside the library, or `topic:NAME`), sorted.

    Raises:
        ConfigError: if there is no such domain or split.
        DataError: if this Python comes without the source files of its standard library.
    """
    check_choice("domain", domain, get_args(Domain))
    check_choice("split", split, get_args(Split))
    extract, held_out = _prose if domain == "english" else _bare_code, split == "held_out"
    found = {
        name: extract(path.read_text(encoding="utf-8", errors="replace"))
        for name, path in library_files().items()
        if is_held_out(name) == held_out
    }
    if domain == "english":  # and the language reference as `help()` shows it, without markup
        from pydoc_data.topics import topics

        texts = {f"topic:{topic}": text for topic, text in topics.items()}
        found |= {n: _only_prose(t) for n, t in texts.items() if is_held_out(n) == held_out}
    return {name: found[name] for name in sorted(found) if found[name]}


def library_files() -> dict[str, Path]:
    """The standard library's modules by their path inside it, without tests and data.

    Raises:
        DataError: if there are none.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = {path.relative_to(root): path for path in root.rglob("*.py")}
    kept = {
        relative.as_posix(): path
        for relative, path in paths.items()
        if not _LEFT_OUT & set(relative.parts)
        and not relative.as_posix().startswith(("config-", "_sysconfigdata"))  # of one machine
    }
    if not kept:
        raise DataError(
            f"no source files of the standard library in {root}: this Python was installed "
            "without them. Run the demo with another Python (3.11 or newer)."
        )
    return dict(sorted(kept.items()))


def is_held_out(name: str) -> bool:
    """Whether a file or topic is held out of training; depends on nothing but its name."""
    digest = blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_OF_100


def _prose(source: str) -> str:
    """Docstrings and comment blocks of a file, in the order of their lines."""
    found = [*_comment_blocks(source)]
    for node in ast.walk(_parse(source)):
        if isinstance(node, _Documented) and (text := ast.get_docstring(node)):
            found.append((node.body[0].lineno, text))
    return _only_prose("\n\n".join(text for _, text in sorted(found)))


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The library has old escapes in strings.
        return ast.parse(source)


def _comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Comments that fill whole lines; neighbours in one column are one block."""
    block: list[str] = []
    start, last, column = 0, -1, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        row, col = token.start
        if block and (row, col) != (last + 1, column):
            yield start, "\n".join(block)
            block = []
        start = start if block else row
        last, column = row, col
        block.append(token.string.lstrip("#!:").strip())
    if block:
        yield start, "\n".join(block)


def _only_prose(text: str) -> str:
    """The paragraphs that read as English, each on one line, one blank line apart."""
    # Without what marks emphasis and code in reStructuredText, and underlines of titles.
    text = re.sub(r"^[*=\-~^\"]{3,}$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*|``|`|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)", "", text)
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(part.split()) for part in paragraphs if _reads_as_english(part))


def _reads_as_english(paragraph: str) -> bool:
    """Long enough, mostly lower-case words, and no interactive session."""
    words = paragraph.split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    return ">>>" not in paragraph and len(words) >= 5 and plain >= 0.75 * len(words)


def _bare_code(source: str) -> str:
    """The code as `ast.unparse` writes it (which drops comments), without docstrings."""
    tree = _parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _Documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _cut(text: str, separator: str) -> Iterator[str]:
    """Pieces of whole units (paragraphs, lines) of at most `PASSAGE_CHARACTERS`.

    A longer unit is a piece of its own; blank units at the start of a piece are dropped.
    """
    piece = ""
    for unit in text.split(separator):
        if piece and len(piece) + len(unit) > PASSAGE_CHARACTERS:
            yield piece
            piece = ""
        piece = piece + separator + unit if piece else unit
    if piece:
        yield piece
