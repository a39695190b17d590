"""TRL's trainers train an expanded model as a bare loop that adds the divergence itself.

Batches have padding (GRPO's on both sides), so a mean over padded positions would show. Each micro-
batch counts the mean over its real tokens; a step the mean over its micro-batches.
"""

import pytest
import torch
import torch.nn.functional as F
from tests.integrations.trl_runs import (
    LR,
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
    trained,
)
from trl import DPOTrainer, SFTTrainer

from controlllm.common.losses import cross_entropy_sum, token_mask
from controlllm.integrations import ControlLLMCallback
from controlllm.integrations.trl import (
    ControlLLMDPOTrainer,
    ControlLLMGRPOTrainer,
    ControlLLMSFTTrainer,
)

BETA = 0.3


def take_steps(model, steps, loss_of):
    """SGD over steps of micro-batches; `loss_of(logits, batch)` is each one's own loss."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    for batches in steps:
        for batch in batches:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            with model.explicit_divergence() as terms:
                logits = model(**inputs).logits
            mask = token_mask(batch, model.expansion.divergence_tokens)
            divergence, tokens = terms.total(mask)
            loss = loss_of(logits, batch) + divergence / tokens
            (loss / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def log_probabilities(logits, batch):
    """Of each token given those before it (B, T - 1), 0 where none is scored."""
    labels = batch["labels"][:, 1:]
    scores = F.log_softmax(logits[:, :-1].float(), -1)
    scores = scores.gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    return torch.where(labels == -100, 0.0, scores)


def padded(rows, labels, left=()):
    """A batch of rows of several lengths, as (ids, attention mask, labels)."""

    def pad(values, filler):
        tensors = [torch.tensor(v) for v in values]
        return torch.nn.utils.rnn.pad_sequence(tensors, True, filler)

    mask = pad([[1] * len(row) for row in rows], 0)
    return {"input_ids": pad(rows, 0), "attention_mask": mask, "labels": pad(labels, -100)}


def preference_batches(tokenizer, accumulation):
    """The pairs of three steps, chosen before rejected, as DPO scores them."""
    size, batches = 4 // accumulation, []
    for start in range(0, 12, size):
        rows, labels = [], []
        for answer in ("chosen", "rejected"):
            for pair in PAIRS.select(range(start, start + size)):
                prompt = tokenizer(pair["prompt"]).input_ids
                ids = tokenizer(pair["prompt"] + pair[answer] + "</s>").input_ids
                rows.append(ids)
                labels.append([-100] * len(prompt) + ids[len(prompt) :])
        batches.append(padded(rows, labels))
    return [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]


def preference_loss(base):
    """-log sigmoid(beta * margin over the base), mean over pairs."""

    def loss_of(logits, batch):
        with torch.no_grad():
            other = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            reference = log_probabilities(other.logits, batch).sum(1)
        ratio = log_probabilities(logits, batch).sum(1) - reference
        chosen, rejected = ratio.chunk(2)
        return -F.logsigmoid(BETA * (chosen - rejected)).mean()

    return loss_of


@pytest.mark.parametrize(
    ("weight", "accumulation", "checkpointing", "tokens"),
    [
        (0.0, 2, False, "all"),
        (2.0, 1, False, "all"),
        (2.0, 2, True, "all"),
        (2.0, 2, False, "target"),
    ],
)
def test_dpo(talking_folder, tmp_path, pico_tokenizer, weight, accumulation, checkpointing, tokens):
    model, other = (expanded(talking_folder, weight, divergence_tokens=tokens) for _ in range(2))
    config = dpo_config(tmp_path, accumulation, gradient_checkpointing=checkpointing, beta=BETA)
    ControlLLMDPOTrainer(
        model, args=config, train_dataset=PAIRS, processing_class=pico_tokenizer
    ).train()
    steps = preference_batches(pico_tokenizer, accumulation)
    assert all((batch["attention_mask"] == 0).any() for batches in steps for batch in batches)
    assert_same(model, take_steps(other, steps, preference_loss(load_base(talking_folder))))


def recorded(trainer):
    """The batches that GRPO scores, each with what it was scored by."""
    batches, compute_loss = [], trainer.compute_loss

    def record(model, inputs, *args, **kwargs):
        prompt, completion = inputs["prompt_ids"], inputs["completion_ids"]
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        ids = torch.cat([prompt, completion], 1)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : prompt.shape[1]] = -100
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batches.append(batch | {"advantages": inputs["advantages"]})
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = record
    return batches


def policy_loss(base):
    """The policy's gradient and the KL to the base, mean over the tokens of each answer."""

    def loss_of(logits, batch):
        with torch.no_grad():
            other = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            reference = log_probabilities(other.logits, batch)
        own, mask = log_probabilities(logits, batch), batch["labels"][:, 1:] != -100
        kl = (reference - own).exp() - (reference - own) - 1
        weight = (own - own.detach()).exp()  # 1, with the gradient of the answers' probabilities
        per_token = torch.where(mask, weight * (BETA * kl - batch["advantages"][:, None]), 0.0)
        return (per_token.sum(1) / mask.sum(1)).mean()

    return loss_of


@pytest.mark.parametrize(
    ("weight", "accumulation", "checkpointing"),
    [(0.0, 2, False), (2.0, 1, False), (2.0, 2, True)],
)
def test_grpo(talking_folder, tmp_path, pico_tokenizer, weight, accumulation, checkpointing):
    model, other = expanded(talking_folder, weight), expanded(talking_folder, weight)
    config = grpo_config(tmp_path, accumulation, gradient_checkpointing=checkpointing, beta=BETA)
    trainer = ControlLLMGRPOTrainer(
        model,
        reward_funcs=letters,
        args=config,
        train_dataset=PROMPTS,
        processing_class=pico_tokenizer,
    )
    batches = recorded(trainer)
    trainer.train()
    assert len(batches) == 3 * accumulation
    masks = [batch["attention_mask"] for batch in batches]
    assert any((mask[:, 0] == 0).any() for mask in masks), "no prompt is padded"
    assert any((mask[:, -1] == 0).any() for mask in masks), "no answer is padded"
    steps = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    assert_same(model, take_steps(other, steps, policy_loss(load_base(talking_folder))))


def text_batches(tokenizer, accumulation):
    rows = [tokenizer(row["text"] + "</s>").input_ids for row in TEXTS]
    size = 4 // accumulation
    return [padded(rows[i : i + size], rows[i : i + size]) for i in range(0, len(rows), size)]


def bare_sft(model, batches, accumulation):
    """Cross-entropy over the targets of a step; 10 rows make two whole steps and half a one."""
    steps = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    by_step = []
    for step in steps:
        targets = sum((batch["labels"][:, 1:] != -100).sum() for batch in step)
        by_step.append([batch | {"scale": len(step) / targets} for batch in step])

    def loss_of(logits, batch):
        return cross_entropy_sum(logits, batch["labels"])[0] * batch["scale"]

    return take_steps(model, by_step, loss_of)


@pytest.mark.parametrize(("weight", "accumulation"), [(2.0, 1), (2.0, 2)])
def test_sft_with_a_short_last_step(talking_folder, tmp_path, pico_tokenizer, weight, accumulation):
    model, other = expanded(talking_folder, weight), expanded(talking_folder, weight)
    config = sft_config(tmp_path, accumulation, max_steps=-1, num_train_epochs=1)
    trainer = ControlLLMSFTTrainer(
        model, args=config, train_dataset=TEXTS, processing_class=pico_tokenizer
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert_same(model, bare_sft(other, text_batches(pico_tokenizer, accumulation), accumulation))


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("sdpa", {"padding_free": True}),
        ("packed_sdpa", {"packing": True}),
        ("eager", {"packing": True}),
    ],
    ids=str,
)
def test_sft_without_padding_is_the_same_training(
    talking_folder, tmp_path, pico_tokenizer, attention, options
):
    """Documents in one row do not see each other, and all their tokens count as if padded."""
    from controlllm.common.attention.attention import register_packed_attention

    register_packed_attention()
    models = [expanded(talking_folder, 2.0) for _ in range(2)]
    rows = TEXTS.select(range(4))
    for model, chosen in zip(models, ({}, options), strict=True):
        # One row that packing fills is one batch; without it four rows are.
        limits = {"max_length": 256 if chosen.get("packing") else None, "max_steps": 2}
        config = sft_config(tmp_path, **limits, **chosen)
        if chosen:
            model.set_attn_implementation(attention)
        SFTTrainer(
            model,
            args=config,
            train_dataset=rows,
            processing_class=pico_tokenizer,
            callbacks=[ControlLLMCallback()],
        ).train()
    assert_same(*models)


MEMORY = {
    "reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "selective": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"selective": True},
    },
}


def test_what_saves_memory_changes_nothing(talking_folder, tmp_path, pico_tokenizer):
    plain, *models = (expanded(talking_folder, 2.0) for _ in range(1 + len(MEMORY)))
    for model, options in zip((plain, *models), ({}, *MEMORY.values()), strict=True):
        config = sft_config(tmp_path, 2, **options)
        ControlLLMSFTTrainer(
            model, args=config, train_dataset=TEXTS, processing_class=pico_tokenizer
        ).train()
    for model in models:
        assert_same(plain, model)


def test_the_divergence_matters(talking_folder, tmp_path, pico_tokenizer):
    """Or the tests above could not fail."""
    steps = preference_batches(pico_tokenizer, 1)
    loss_of = preference_loss(load_base(talking_folder))
    models = [take_steps(expanded(talking_folder, w), steps, loss_of) for w in (0.0, 2.0)]
    ours, theirs = map(trained, models)
    assert any((ours[name] - theirs[name]).abs().max() > 1e-2 for name in ours)


def test_trls_own_trainer_with_the_callback(talking_folder, tmp_path, pico_tokenizer):
    """The subclasses add nothing to the steps that are whole."""
    models = [expanded(talking_folder, 2.0) for _ in range(2)]
    arguments = {"train_dataset": PAIRS, "processing_class": pico_tokenizer}
    arguments |= {"args": dpo_config(tmp_path, 2), "callbacks": [ControlLLMCallback()]}
    ours = ControlLLMDPOTrainer(models[0], **arguments)
    theirs = DPOTrainer(models[1], ref_model=load_base(talking_folder), **arguments)
    for trainer in (ours, theirs):
        trainer.train()
    assert losses(ours) == losses(theirs)
    assert sum(isinstance(c, ControlLLMCallback) for c in ours.callback_handler.callbacks) == 1
    assert_same(*models, exact=True)
