"""The two domains: what is in them, what is not, and how they are split."""

import ast
import io
import sysconfig
import tokenize
from pathlib import Path

import pytest

from controlllm.common.errors import ConfigError, DataError
from controlllm.demo import corpus
from controlllm.demo.corpus import documents, is_held_out, passages

MODULE = '''"""Parse the configuration that a user has written by hand."""

# The comments of a file belong to its prose, as long as
# they fill whole lines and are long enough.
LIMIT = 3  # not this one, it shares its line


def parse(text):
    """Return the parsed values as a dictionary of strings.

    >>> parse("this example is no prose at all, it is a session")

    short one
    """
    return {}


def documented_only():
    """Do nothing at all, but say so in a whole sentence."""
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of one module, and of files that must be left out."""
    names = ("sample.py", "test/left_out.py", "site-packages/left_out.py", "config-3/x.py")
    assert not is_held_out("sample.py")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(MODULE)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


def test_prose_is_docstrings_and_comments_in_the_order_of_the_file(library: Path) -> None:
    assert documents("english", "train")["sample.py"].split("\n\n") == [
        "Parse the configuration that a user has written by hand.",
        "The comments of a file belong to its prose, as long as they fill whole lines and are "
        "long enough.",
        "Return the parsed values as a dictionary of strings.",
        "Do nothing at all, but say so in a whole sentence.",
    ]


def test_code_has_neither_docstrings_nor_comments(library: Path) -> None:
    assert documents("code", "train") == {
        "sample.py": "LIMIT = 3\n\ndef parse(text):\n    return {}\n\n"
        "def documented_only():\n    pass"
    }
    assert documents("code", "held_out") == {}


def test_a_python_without_sources_is_told(library: Path) -> None:
    (library / "sample.py").unlink()
    with pytest.raises(DataError, match="no source files"):
        passages("code", "train")


@pytest.mark.parametrize(("domain", "split"), [("englisch", "train"), ("code", "heldout")])
def test_wrong_names_are_refused(domain: str, split: str) -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        passages(domain, split)  # type: ignore[arg-type]


def test_the_split_is_by_name_and_about_an_eighth() -> None:
    names = [f"module_{number}.py" for number in range(4000)]
    share = sum(map(is_held_out, names)) / len(names)
    assert 0.10 < share < 0.14
    # Written down: by another hash the committed base would have read what is held out.
    held_out = {"ast.py", "base64.py", "contextlib.py", "enum.py", "json/__init__.py"}
    assert held_out == {name for name in (*held_out, "abc.py", "os.py") if is_held_out(name)}


def test_held_out_texts_of_this_python() -> None:
    english, code = (documents(domain, "held_out") for domain in ("english", "code"))
    assert all(map(is_held_out, [*english, *code]))
    assert any(name.startswith("topic:") for name in english)
    assert not any(">>>" in text for text in english.values())
    for text in code.values():
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        assert not any(token.type == tokenize.COMMENT for token in tokens)
        assert ast.get_docstring(ast.parse(text)) is None


def test_passages_are_whole_lines_and_lose_nothing() -> None:
    whole = "\n".join(documents("code", "held_out").values())
    pieces = passages("code", "held_out")
    assert _lines("\n".join(pieces)) == _lines(whole)
    long = [piece for piece in pieces if len(piece) > corpus.PASSAGE_CHARACTERS + 100]
    assert all("\n" not in piece for piece in long)


def _lines(text: str) -> list[str]:
    """Lines, without the blank ones that may lie between two passages."""
    return [line for line in text.splitlines() if line.strip()]
