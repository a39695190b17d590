"""Any loop trains an adapter as a bare loop trains the expanded model with an explicit sum."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.integrations.peft.making import add_trained
from tests.laws.architectures import VOCAB, make_base
from tests.laws.models import batch, logits
from tests.parity.test_trainers import (
    LENGTH,
    ROWS,
    STEPS,
    bare_loop,
    hf_trainer,
    make_model,
    rows_dataset,
    settings,
    trl_trainer,
)

from controlllm.common.errors import ModelError
from controlllm.common.losses import cross_entropy_sum, token_mask
from controlllm.common.tensors import copy_tensors
from controlllm.expansion.files.sidecar import sidecar_tensors
from controlllm.integrations import ControlLLMCallback
from controlllm.integrations.peft import ControlLLMPeftConfig, adapters_of


@pytest.fixture(scope="module")
def ids():
    """Rows without padding, so that every micro-batch has as many targets."""
    return torch.randint(3, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(5))


def make_adapter(weight=1.0, native=False, **options):
    """The adapter that starts as the expanded model of `make_model`; another one lies idle."""
    base = make_base("llama")
    config = ControlLLMPeftConfig(num_blocks=2, divergence_weight=weight, **options)
    if native:
        base.add_adapter(config, "maths")
        model = base
    else:
        model = get_peft_model(base, config, "maths")
        add_trained(model, "code", seed=9, layers=[0, 1], divergence="none")
    start = sidecar_tensors(make_model(weight, **options))
    copy_tensors(adapters_of(model).named["maths"].tensors(), start, "the start")
    return model


def assert_same(adapted, expanded):
    ours, theirs = adapters_of(adapted).named["maths"].tensors(), sidecar_tensors(expanded)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight, accumulation", [(0.0, 1), (2.0, 1), (2.0, 2)])
@pytest.mark.parametrize("native", [False, True], ids=["peft", "transformers"])
def test_transformers_trainer(ids, tmp_path, native, accumulation, weight):
    model = hf_trainer(make_adapter(weight, native), ids, tmp_path, accumulation)
    assert_same(model, bare_loop(make_model(weight), ids))


@pytest.mark.parametrize("weight, accumulation", [(0.0, 1), (2.0, 1), (2.0, 2)])
def test_trl_sft_trainer(ids, tmp_path, pico_tokenizer, accumulation, weight):
    callbacks = [ControlLLMCallback()]  # TRL's loss does not tell the model of accumulation
    model = trl_trainer(
        make_adapter(weight), ids, tmp_path, accumulation, pico_tokenizer, callbacks
    )
    assert_same(model, bare_loop(make_model(weight), ids))


def test_trl_wraps_the_base_itself(ids, tmp_path, pico_tokenizer):
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **settings(tmp_path, 1) | {"save_strategy": "steps", "save_steps": STEPS},
        max_length=None,
        gradient_checkpointing=True,
    )
    trainer = SFTTrainer(
        model=make_base("llama"),
        args=arguments,
        train_dataset=rows_dataset(ids),
        processing_class=pico_tokenizer,
        peft_config=ControlLLMPeftConfig(num_blocks=2),
    )
    trainer.train()
    untrained = get_peft_model(make_base("llama"), ControlLLMPeftConfig(num_blocks=2), "maths")
    expanded = make_model()
    start = adapters_of(untrained).named["maths"].tensors()
    copy_tensors(sidecar_tensors(expanded), start, "the start")
    bare_loop(expanded, ids)
    again = PeftModel.from_pretrained(make_base("llama"), tmp_path / f"checkpoint-{STEPS}", "maths")
    assert_same(again, expanded)


def test_trl_accumulation_that_nobody_tells_of_is_refused(ids, tmp_path, pico_tokenizer):
    with pytest.raises(ModelError, match="ControlLLMCallback"):
        trl_trainer(make_adapter(), ids, tmp_path, 2, pico_tokenizer)


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": True}, {"use_reentrant": False}])
@pytest.mark.parametrize("options", [{}, {"expand_ends": True}, {"interpolator": "dlerp"}], ids=str)
def test_a_bare_loop_on_the_loss(ids, options, checkpointing):
    """The loss holds the divergence, and its gradient is that of the explicit sum, once."""
    model, expanded = make_adapter(**options), make_model(**options)
    if checkpointing is not None:
        for one in (model.get_base_model(), expanded):
            one.gradient_checkpointing_enable(checkpointing)
            one.enable_input_require_grads()
    for one in (model, expanded):
        one.train()
    inputs = {"input_ids": ids[:4], "attention_mask": torch.ones_like(ids[:4])}
    loss = model(**inputs, labels=ids[:4]).loss
    with expanded.explicit_divergence() as terms:
        output = expanded(**inputs)
    cross_entropy, targets = cross_entropy_sum(output.logits, ids[:4])
    divergence, tokens = terms.total(token_mask(inputs))
    explicit = cross_entropy / targets + divergence / tokens
    torch.testing.assert_close(loss, explicit)
    assert divergence / tokens > 1e-3
    assert model.divergence == expanded.divergence
    loss.backward()
    explicit.backward()
    theirs = sidecar_tensors(expanded)
    for key, tensor in adapters_of(model).named["maths"].tensors().items():
        if theirs[key].grad is None:
            assert tensor.grad is None, key
        else:
            torch.testing.assert_close(tensor.grad, theirs[key].grad, rtol=1e-4, atol=1e-6)


def test_a_loop_of_its_own_on_the_logits_gets_the_divergence_injected(ids):
    model, expanded = make_adapter().train(), make_model().train()
    for one in (model, expanded):
        output = one(input_ids=ids[:4])
        cross_entropy, targets = cross_entropy_sum(output.logits, ids[:4])
        (cross_entropy / targets).backward()
    theirs = sidecar_tensors(expanded)
    for key, tensor in adapters_of(model).named["maths"].tensors().items():
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, theirs[key].grad)


def test_the_explicit_divergence_is_the_callers(ids):
    model, expanded = make_adapter().train(), make_model().train()
    inputs = {"input_ids": ids[:4], "labels": ids[:4]}
    sums = []
    for one in (model, expanded):
        with one.explicit_divergence() as terms:
            loss = one(**inputs).loss
        sums.append((loss, terms.total(token_mask(inputs))[0]))
    assert torch.equal(sums[0][0], sums[1][0]) and torch.equal(sums[0][1], sums[1][1])


def test_evaluation_and_the_disabled_adapter_have_no_divergence(ids):
    model = make_adapter()
    inputs = {"input_ids": ids[:4], "labels": ids[:4]}
    training = model.train()(**inputs).loss
    evaluating = model.eval()(**inputs).loss
    assert training > evaluating + 1e-3
    model.train()
    with model.disable_adapter():
        assert torch.equal(model(**inputs).loss, make_base("llama")(**inputs).loss)


def test_a_trainers_checkpoint_goes_on(ids, tmp_path):
    from transformers import Trainer, TrainingArguments

    options = settings(tmp_path, 1) | {"save_strategy": "steps", "save_steps": 1}
    arguments = TrainingArguments(**options)
    straight, resumed = make_adapter(), make_adapter()
    for model, checkpoint in ((straight, None), (resumed, str(tmp_path / "checkpoint-1"))):
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows_dataset(ids),
            callbacks=[ControlLLMCallback()],
        )
        trainer.train(resume_from_checkpoint=checkpoint)
    assert not (tmp_path / "checkpoint-1" / "sidecar").exists()
    assert (tmp_path / "checkpoint-1" / "maths" / "adapter_config.json").is_file()
    ours, theirs = (adapters_of(m).named["maths"].tensors() for m in (resumed, straight))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(logits(resumed), logits(straight))


def test_lora_and_adapters_are_not_mixed_in_silence():
    """PEFT's mixed model knows the methods that it was told of, and this one is not among them."""
    with pytest.raises(ValueError, match="CONTROLLLM"):
        get_peft_model(make_base("llama"), ControlLLMPeftConfig(num_blocks=1), mixed=True)
    model = make_adapter()
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))


def test_padding_does_not_count(ids):
    """The batch of the laws has a padded row; the mask arrives through the wrapper."""
    model, expanded = make_adapter().train(), make_model().train()
    assert torch.equal(model(**batch()).loss, expanded(**batch()).loss)
