"""What the documents say exists: links lead somewhere, commands have these verbs and options."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlllm.cli import main
from controlllm.train.config.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDES = [
    path for path in DOCUMENTS if path.parent.name != "decisions"
]  # those hold signatures only
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)


def code_blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [body for language, body in FENCE.findall(path.read_text()) if language in languages]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_relative_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text())
    for match in LINK.finditer(text):
        target = (match[1] or match[2]).split("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{target} does not exist"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_compile(path):
    for block in code_blocks(path, "python"):
        compile(block, str(path), "exec")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_make_targets_exist(path):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for block in code_blocks(path, "bash", "sh", "console", ""):
        for target in re.findall(r"^\$?\s*make ([a-z]+)", block, re.M):
            assert target in targets, f"make {target}"


def commands() -> list[Any]:
    """Every `controlllm ...` line of the guides' shell blocks, as words; continued lines joined."""
    found = []
    for path in GUIDES:
        lines = "\n".join(code_blocks(path, "bash", "sh", "console")).replace("\\\n", " ")
        for line in re.findall(r"^\$?\s*(?:\.venv/bin/)?controlllm\s+([^\n#|>]+)", lines, re.M):
            found.append(pytest.param(shlex.split(line), id=f"{path.name}: {line.strip()}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_have_these_verbs_and_options(words, capsys):
    verb, *rest = words
    assert main([verb, "--help"]) == 0, f"controlllm {verb}"
    text = capsys.readouterr().out
    for option in (word.split("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}(?![\w.])", text), f"{verb} has no {option}"


def run_files() -> list[Any]:
    """Every YAML block of the guides that says which model is trained, and every recipe."""
    own = [path for path in GUIDES if path.parent.name != "integrations"]  # those are other tools'
    texts = [(path, block) for path in own for block in code_blocks(path, "yaml")]
    texts += [(path, path.read_text()) for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
    runs = [(path, text) for path, text in texts if re.search(r"^model:", text, re.M)]
    return [pytest.param(text, id=path.name) for path, text in runs]


@pytest.mark.parametrize("text", run_files())
def test_run_files_have_these_settings(text):
    assert RunConfig.from_dict(yaml.safe_load(text)).data.train
