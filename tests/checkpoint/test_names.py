"""Which names a folder elsewhere may use."""

import pytest

from controlllm.common.text.names import holds_data, is_checkpoint, is_plain


@pytest.mark.parametrize(
    "name", ["a", "model-00001-of-2.safetensors", "Notes übers Jahr.txt", "a b"]
)
def test_plain(name):
    assert is_plain(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", "a/b", "a\\b", "C:a", "a\n", "a\x1b[2J", "a\udc80", "x" * 201, 1, None],
)
def test_not_plain(name):
    assert not is_plain(name)


@pytest.mark.parametrize("name", ["checkpoint-0", "checkpoint-123456"])
def test_checkpoints(name):
    assert is_checkpoint(name)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-",
        "checkpoint-1\n",
        "checkpoint-1/..",
        "/a/checkpoint-1",
        "checkpoint-٣",
        "checkpoint-" + "9" * 5000,
        7,
    ],
)
def test_no_checkpoints(name):
    assert not is_checkpoint(name)


def test_data_and_code():
    files = ["model.safetensors", "tokenizer.json", "spiece.model", "chat_template.jinja", "A.JSON"]
    assert all(map(holds_data, files))
    assert not any(map(holds_data, ["a.py", "a.json.py", "json", "a.bin", "a.so", "a.pth", "a.PY"]))
