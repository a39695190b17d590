"""The snippets of docs/integrations/trl.md run as they stand, for one step on a tiny model."""

import re

import pytest

BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize("trainer", ["SFT", "DPO", "GRPO"])
def test_snippet_runs(repository, pico_llama, pico_tokenizer, tmp_path, monkeypatch, trainer):
    pico_llama().save_pretrained(tmp_path / "base")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    text = (repository / "docs" / "integrations" / "trl.md").read_text()
    block = next(b for b in BLOCK.findall(text) if f"ControlLLM{trainer}Trainer" in b)
    small = "max_steps=1, use_cpu=True, report_to=[], save_steps=1"
    replaced = {
        "Qwen/Qwen3-0.6B": str(tmp_path / "base"),
        "max_steps=100": small,
        "num_blocks=4": "num_blocks=2",
    }
    for old, new in replaced.items():
        assert old in block
        block = block.replace(old, new)
    block = block.replace("max_completion_length=64", "max_completion_length=8")
    exec(compile(block, "trl.md", "exec"), {})
    assert (tmp_path / trainer.lower() / "checkpoint-1" / "sidecar").is_dir()
