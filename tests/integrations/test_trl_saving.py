"""What TRL's trainers leave on disk, and that a run goes on from it as if it had never stopped."""

import pytest
import torch
from tests.integrations.trl_runs import (
    PAIRS,
    PROMPTS,
    TEXTS,
    assert_same,
    dpo_config,
    expanded,
    grpo_config,
    letters,
    load_base,
    losses,
    sft_config,
)
from transformers import AutoModelForCausalLM

from controlllm import load_sidecar
from controlllm.integrations.trl import (
    ControlLLMDPOTrainer,
    ControlLLMGRPOTrainer,
    ControlLLMSFTTrainer,
)

RUNS = {
    "sft": (ControlLLMSFTTrainer, sft_config, {"train_dataset": TEXTS}),
    "dpo": (ControlLLMDPOTrainer, dpo_config, {"train_dataset": PAIRS}),
    "grpo": (
        ControlLLMGRPOTrainer,
        grpo_config,
        {"train_dataset": PROMPTS, "reward_funcs": letters},
    ),
}
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}


def make_trainer(name, model, folder, tokenizer, **options):
    trainer, config, arguments = RUNS[name]
    options = SAVING | {"learning_rate": 0.01, "lr_scheduler_type": "linear"} | options
    arguments = arguments | {"args": config(folder, 2, **options), "processing_class": tokenizer}
    return trainer(model, **arguments)


def assert_sidecars(talking_folder, folder, model):
    """Each checkpoint has one; the last is the trained model."""
    first, last = (
        load_sidecar(load_base(talking_folder), folder / f"checkpoint-{step}" / "sidecar")
        for step in (2, 4)
    )
    assert_same(last, model, exact=True)
    with pytest.raises(AssertionError):
        assert_same(first, model)


@pytest.mark.parametrize("name", RUNS)
def test_resuming_equals_the_straight_run(talking_folder, tmp_path, pico_tokenizer, name):
    # Shuffled rows: the order must go on, too.
    options = {} if name == "grpo" else {"train_sampling_strategy": "random"}
    straight = make_trainer(
        name, expanded(talking_folder), tmp_path / "straight", pico_tokenizer, **options
    )
    straight.train()
    fresh = expanded(talking_folder)
    with torch.no_grad():  # whatever it holds, the checkpoint replaces it
        for parameter in fresh.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    resumed = make_trainer(name, fresh, tmp_path / "resumed", pico_tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_same(resumed.model, straight.model, exact=True)
    ours, theirs = losses(resumed), losses(straight)
    assert ours[:2] == theirs[:2]
    without_count = [
        [{k: v for k, v in row.items() if k != "num_tokens"} for row in rows[2:]]
        for rows in (ours, theirs)
    ]
    assert without_count[0] == without_count[1] and without_count[0]
    assert_sidecars(talking_folder, tmp_path / "straight", straight.model)
    trained = {n for n, p in resumed.model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in straight.model.named_parameters() if p.requires_grad}


def test_the_saved_model_and_its_cards(talking_folder, tmp_path, pico_tokenizer):
    trainer = make_trainer("dpo", expanded(talking_folder), tmp_path, pico_tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert_same(again, trainer.model, exact=True)
    ids = torch.tensor([[5, 6, 7]])
    with again.disable_adapter():
        logits = again(input_ids=ids).logits
    assert torch.equal(logits, load_base(talking_folder)(input_ids=ids).logits)
    for folder in ("final", "checkpoint-4", "checkpoint-4/sidecar"):
        card = (tmp_path / folder / "README.md").read_text()
        assert ("control-llm" in card and "load_sidecar" in card) or "from_pretrained" in card
    assert "DPO" in (tmp_path / "README.md").read_text()  # TRL's own, beside the checkpoints
