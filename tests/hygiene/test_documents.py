"""What the documents say exists: links lead somewhere, commands have these verbs and options."""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from controlllm.cli import main
from controlllm.train.config.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDES = [
    path for path in DOCUMENTS if path.parent.name != "decisions"
]  # those hold signatures only
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)


def code_blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [body for language, body in FENCE.findall(path.read_text()) if language in languages]


def test_relative_links_lead_somewhere():
    wrong = []
    for path in DOCUMENTS:
        for match in LINK.finditer(FENCE.sub("", path.read_text())):
            target = (match[1] or match[2]).split("#")[0]
            elsewhere = "://" in target or target.startswith("mailto:")
            if target and not elsewhere and not (path.parent / target).exists():
                wrong.append((path, target))
    assert wrong == []


def test_python_blocks_compile():
    for path in GUIDES:
        for block in code_blocks(path, "python"):
            compile(block, str(path), "exec")


def test_make_targets_exist():
    targets = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.M)
    known = {name for names in targets for name in names.split()}
    wrong = []
    for path in DOCUMENTS:
        for block in code_blocks(path, "bash", "sh", "console", ""):
            named = re.findall(r"^\$?\s*make ([a-z-]+)", block, re.M)
            wrong += [(path, name) for name in named if name not in known]
    assert wrong == []


def test_no_page_installs_by_a_name_that_is_not_published():
    """An extra of what is installed is found without the index: `pip install 'controlllm[x]'`."""
    by_name = re.compile(r"pip install [^`#\n]*(?<![./\w])controlllm(?![\[\w-])")
    texts = {path: path.read_text() for path in [*DOCUMENTS, *(ROOT / "src").rglob("*.py")]}
    assert [path for path, text in texts.items() if by_name.search(text)] == []


def commands() -> dict[str, list[list[str]]]:
    """The words of every `controlllm ...` line of the guides' shell blocks, by verb."""
    found = defaultdict[str, list[list[str]]](list)
    for path in GUIDES:
        lines = "\n".join(code_blocks(path, "bash", "sh", "console")).replace("\\\n", " ")
        for line in re.findall(r"^\$?\s*(?:\.venv/bin/)?controlllm\s+([^\n#|>]+)", lines, re.M):
            verb, *rest = shlex.split(line)
            found[verb].append(rest)
    return found


@pytest.mark.parametrize(("verb", "lines"), commands().items())
def test_commands_have_these_verbs_and_options(verb, lines, capsys):
    assert main([verb, "--help"]) == 0, f"controlllm {verb}"
    text = capsys.readouterr().out
    options = {w.split("=")[0] for line in lines for w in line if w.startswith("--")}
    missing = [o for o in options if not re.search(rf"{re.escape(o)}(?![\w.])", text)]
    assert missing == [], f"{verb} does not have these"


def run_files() -> Iterator[tuple[Path, str]]:
    """Every YAML block of the guides that says which model is trained, and every recipe."""
    own = [path for path in GUIDES if path.parent.name != "integrations"]  # those are other tools'
    texts = [(path, block) for path in own for block in code_blocks(path, "yaml")]
    texts += [(path, path.read_text()) for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
    return ((path, text) for path, text in texts if re.search(r"^model:", text, re.M))


def test_run_files_have_these_settings():
    for path, text in run_files():
        assert RunConfig.from_dict(yaml.safe_load(text)).data.train, path
