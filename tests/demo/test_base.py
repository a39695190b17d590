"""The recipe of the base model, at pico size, and the base it made."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from benchmarks import demo_base as module
from benchmarks.demo_base import Recipe, build_model, pretrain, train_tokenizer

from controlllm.checkpoint import load_model
from controlllm.demo import base_model_path
from controlllm.demo.config import DemoConfig
from controlllm.demo.domains import NEW, OLD, held_out, write_data
from controlllm.demo.methods import load_base
from controlllm.evaluate import evaluate_losses

PICO = Recipe(
    vocab_size=300, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, length=16,
    batch_size=4, max_steps=30, warmup_steps=3, learning_rate=2e-2, eval_steps=15,
)  # fmt: skip
TEXTS = {
    "english": ["Return the number of items in the list, or zero where it is empty. " * 8],
    "code": ["def count(items):\n    return len(items)\n" * 8],
}


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts take the place of this Python's library, which takes minutes to learn."""
    monkeypatch.setattr(module, "passages", lambda domain, split: TEXTS[domain])


def test_the_recipe_learns_and_repeats(small_corpus: None, tmp_path: Path) -> None:
    for name in ("first", "second"):
        pretrain(PICO, tmp_path / name)
    history = json.loads((tmp_path / "first" / "training.json").read_text())["history"]
    assert [record["step"] for record in history] == [15, 30]
    assert history[-1]["english"] < history[0]["english"] - 0.1
    (first, tokenizer), (second, _) = (load_model(tmp_path / n) for n in ("first", "second"))
    assert tokenizer("Return").input_ids[0] == tokenizer.bos_token_id
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_tokenizer_expresses_every_byte() -> None:
    tokenizer = train_tokenizer(TEXTS["english"], vocab_size=300)
    text = "naïve\t€ \U0001f40d\n"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_committed_base_is_the_recipes() -> None:
    written = json.loads((base_model_path() / "training.json").read_text())
    assert written["recipe"] == asdict(Recipe())
    model, tokenizer = load_base()
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in build_model(Recipe()).named_parameters()
    }
    assert len(tokenizer) == Recipe().vocab_size
    assert sum(file.stat().st_size for file in base_model_path().iterdir()) < 4.5e6


def test_the_committed_base_knows_english_better_than_code(tmp_path: Path) -> None:
    model, tokenizer = load_base()
    write_data(tmp_path, DemoConfig(eval_passages=24))
    sets = held_out(tmp_path, tokenizer)
    old = evaluate_losses(model, sets.retain[OLD]).loss
    new = evaluate_losses(model, sets.learn[NEW]).loss
    assert old < 4.0
    assert new > old + 0.2
