"""Real weights (stories260k) learn from real questions (GSM8K) by TRL's trainers."""

import gzip
import json

import pytest
import torch
from datasets import Dataset
from tests.integrations.trl_runs import dpo_config, load_base, losses, sft_config
from transformers import AutoTokenizer

from controlllm import expand, load_sidecar
from controlllm.integrations.trl import ControlLLMDPOTrainer, ControlLLMSFTTrainer

OPTIONS = {
    "max_steps": 8,
    "learning_rate": 3e-3,
    "optim": "adamw_torch",
    "max_length": 128,
    "per_device_train_batch_size": 6,
    "gradient_checkpointing": True,
}


@pytest.fixture(scope="module")
def questions(shared_data):
    with gzip.open(shared_data / "sft" / "gsm8k" / "train.jsonl.gz", "rt") as lines:
        return [json.loads(next(lines)) for _ in range(96)]


def assert_base_inside(model, folder):
    ids = torch.arange(3, 35)[None]
    with torch.no_grad(), model.eval().disable_adapter():
        logits = model(input_ids=ids).logits
    assert torch.equal(logits, load_base(folder)(input_ids=ids).logits)
    assert not torch.equal(logits, model(input_ids=ids).logits)


def test_sft_on_gsm8k(stories260k, questions, tmp_path):
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in questions]
    model = expand(load_base(stories260k), num_blocks=5, expand_ends=True)
    trainer = ControlLLMSFTTrainer(
        model,
        args=sft_config(tmp_path, **OPTIONS, save_strategy="steps", save_steps=8),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(stories260k),
    )
    trainer.train()
    curve = [row["loss"] for row in losses(trainer)]
    assert sum(curve[-3:]) / 3 < 0.7 * curve[0]
    assert all(d > 0 for d in model.divergence.values())
    again = load_sidecar(load_base(stories260k), tmp_path / "checkpoint-8" / "sidecar")
    ids = torch.arange(3, 35)[None]
    assert torch.equal(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert_base_inside(model, stories260k)


def test_dpo_on_gsm8k(stories260k, questions, tmp_path):
    """Answers are preferred with their marked result ("#### 72") to the bare result."""
    pairs = [
        {
            "prompt": row["question"][-120:] + " ",
            "chosen": "####" + row["answer"].rpartition("####")[2],
            "rejected": row["answer"].rpartition("####")[2].strip(),
        }
        for row in questions
    ]
    model = expand(load_base(stories260k), num_blocks=5)
    trainer = ControlLLMDPOTrainer(
        model,
        args=dpo_config(tmp_path, **OPTIONS),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(stories260k),
    )
    trainer.train()
    rows = losses(trainer)
    # It begins as its own reference: no margin, and the loss of a coin.
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert all(row["rewards/accuracies"] > 0.8 for row in rows[-3:])
    assert rows[-1]["rewards/margins"] > 0.5 and rows[-1]["loss"] < 0.5
    assert_base_inside(model, stories260k)
