"""Foreign loops train an expanded model as a bare loop that adds the divergence itself.

The loops: transformers' `Trainer`, TRL's `SFTTrainer` (whose default loss replaces the model's
forward), and both of them on a model that PEFT has wrapped.
"""

import pytest
import torch
from tests.laws.architectures import VOCAB, make_base

from controlllm import expand, load_sidecar
from controlllm.common.errors import ModelError
from controlllm.common.losses import cross_entropy_sum, token_mask
from controlllm.integrations import ControlLLMCallback

ROWS, LENGTH, STEPS, LR = 8, 9, 2, 0.5


@pytest.fixture(scope="module")
def ids():
    """Rows without padding, so that every micro-batch has as many targets."""
    return torch.randint(3, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(5))


def make_model(weight=1.0, **settings):
    """Branches that differ, so that the divergence has a gradient."""
    model = expand(make_base("llama"), num_blocks=2, divergence_weight=weight, **settings)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for block in model.blocks.values():
            for parameter in block.expanded.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def bare_loop(model, ids):
    """Two steps of SGD on four rows each; the divergence is an explicit sum."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    for rows in ids.split(ROWS // STEPS):
        inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        with model.explicit_divergence() as terms:
            output = model(**inputs)
        cross_entropy, targets = cross_entropy_sum(output.logits, rows)
        divergence, tokens = terms.total(token_mask(inputs))
        (cross_entropy / targets + divergence / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def settings(tmp_path, accumulation):
    """What both trainers are told: the same rows in the same order, SGD, nothing else."""
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": ROWS // STEPS // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }


def rows_dataset(ids):
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})


def hf_trainer(model, ids, tmp_path, accumulation):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(**settings(tmp_path, accumulation))
    trainer = Trainer(model=model, args=arguments, train_dataset=rows_dataset(ids))
    trainer.train()
    return model


def trl_trainer(model, ids, tmp_path, accumulation, tokenizer, callbacks=(), **options):
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **settings(tmp_path, accumulation), max_length=None, gradient_checkpointing=False, **options
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows_dataset(ids),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.train()
    return model


def trained_tensors(model):
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(ours, theirs):
    ours, theirs = trained_tensors(ours), trained_tensors(theirs)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("accumulation", "weight"), [(2, 0.0), (1, 1.0), (2, 2.0)])
def test_transformers_trainer(ids, tmp_path, accumulation, weight):
    model = hf_trainer(make_model(weight), ids, tmp_path, accumulation)
    assert_same(model, bare_loop(make_model(weight), ids))


@pytest.mark.parametrize(("accumulation", "weight"), [(2, 0.0), (1, 1.0), (2, 2.0)])
def test_trl_sft_trainer(ids, tmp_path, pico_tokenizer, accumulation, weight):
    model = make_model(weight)
    callbacks = [ControlLLMCallback()]  # TRL's loss does not tell the model of accumulation
    trl_trainer(model, ids, tmp_path, accumulation, pico_tokenizer, callbacks)
    assert_same(model, bare_loop(make_model(weight), ids))


def test_accumulation_that_nobody_tells_of_is_refused(ids, tmp_path, pico_tokenizer):
    with pytest.raises(ModelError, match="ControlLLMCallback"):
        trl_trainer(make_model(), ids, tmp_path, 2, pico_tokenizer)


def test_the_callback_saves_a_sidecar_with_each_checkpoint(ids, tmp_path):
    from transformers import Trainer, TrainingArguments

    options = settings(tmp_path, 1) | {"save_strategy": "steps", "save_steps": STEPS}
    model = make_model()
    Trainer(
        model=model,
        args=TrainingArguments(**options),
        train_dataset=rows_dataset(ids),
        callbacks=[ControlLLMCallback()],
    ).train()
    again = load_sidecar(make_base("llama"), tmp_path / f"checkpoint-{STEPS}" / "sidecar")
    assert_same(again, model)


def test_the_callback_wants_an_expanded_model(ids, tmp_path):
    with pytest.raises(ModelError, match="no expanded model"):
        ControlLLMCallback.find(make_base("llama"))


def test_the_weight_matters(ids):
    """Or the tests above could not fail."""
    tensors = [trained_tensors(bare_loop(make_model(weight), ids)) for weight in (0.0, 1.0)]
    assert any((tensors[0][n] - tensors[1][n]).abs().max() > 1e-2 for n in tensors[0])


@pytest.mark.parametrize("options", [{"expand_ends": True}, {"interpolator": "dlerp"}], ids=str)
def test_trl_trains_ends_and_gates(ids, tmp_path, pico_tokenizer, options):
    model = trl_trainer(make_model(**options), ids, tmp_path, 1, pico_tokenizer)
    assert_same(model, bare_loop(make_model(**options), ids))


@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_peft_on_an_expanded_model(ids, tmp_path, pico_tokenizer, trainer):
    """LoRA on the unexpanded blocks; the expanded ones go on training beside it, aligned."""
    ours, theirs = with_lora(make_model()), with_lora(make_model())
    if trainer == "trl":
        trl_trainer(ours, ids, tmp_path, 1, pico_tokenizer)
    else:
        hf_trainer(ours, ids, tmp_path, 1)
    bare_loop_peft(theirs, ids)
    assert_same(ours, theirs)
    names = trained_tensors(ours)
    assert any("lora_A" in n for n in names) and any("expanded" in n for n in names)
    expanded = ours.get_base_model()
    for parameter in expanded.blocks[1].pretrained.parameters():
        assert not parameter.requires_grad


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=r".*layers\.[02]\.self_attn\.q_proj",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_(True)
    return wrapped


def bare_loop_peft(wrapped, ids):
    """The bare loop through the wrapper, with the terms that the expanded model inside gives."""
    model = wrapped.get_base_model()
    wrapped.train()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=LR)
    for rows in ids.split(ROWS // STEPS):
        with model.explicit_divergence() as terms:
            output = wrapped(input_ids=rows, attention_mask=torch.ones_like(rows))
        cross_entropy, targets = cross_entropy_sum(output.logits, rows)
        divergence, tokens = terms.total(token_mask({"input_ids": rows}))
        (cross_entropy / targets + divergence / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
