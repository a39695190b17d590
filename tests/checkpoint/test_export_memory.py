"""An export holds what was trained in memory, not the base."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from controlllm import expand
from controlllm.common.storage.files import file_digest

EXPORT = """
import json, re, sys, threading, time
from pathlib import Path
from controlllm.cli.export import run

small, trained, folder = sys.argv[1:]
peak = 0


def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def watch():
    global peak
    while not time.sleep(0.001):
        peak = max(peak, anonymous())


run([small, f"{folder}/first"])  # Imports what there is.
threading.Thread(target=watch, daemon=True).start()
added = {}
for form in ("full", "sidecar", "collapsed"):
    before = peak = anonymous()
    run([trained, f"{folder}/{form}", "--form", form])
    added[form] = peak - before
print(json.dumps(added))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_the_base_is_mapped_and_its_files_stay_as_they_are(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(pico_tokenizer),
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=24,
            num_attention_heads=4,
        )
    )
    base.save_pretrained(tmp_path / "base")
    pico_tokenizer.save_pretrained(tmp_path / "base")
    size = sum(parameter.nbytes for parameter in base.parameters())
    base.config.name_or_path = str(tmp_path / "base")
    model = expand(base, num_blocks=3)
    for name, parameter in model.named_parameters():
        if ".expanded." in name:
            parameter.data.add_(0.01)
    model.save_sidecar(tmp_path / "trained")
    own = [file for file in (tmp_path / "base").iterdir() if file.suffix == ".safetensors"]
    before = [file_digest(file) for file in own]
    small = LlamaForCausalLM(LlamaConfig(**{**base.config.to_dict(), "num_hidden_layers": 1}))
    small.save_pretrained(tmp_path / "small")
    pico_tokenizer.save_pretrained(tmp_path / "small")
    folders = [str(tmp_path / name) for name in ("small", "trained", "exported")]
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *folders],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # What is freed is given back.
    )
    assert done.returncode == 0, done.stderr
    for form, added in json.loads(done.stdout.splitlines()[-1]).items():
        # A copy of the three blocks, and in the last form the three that are folded.
        assert added < 0.4 * size, form
    assert [file_digest(file) for file in own] == before
