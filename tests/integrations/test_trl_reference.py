"""The reference of DPO and GRPO is the base inside the model, and it is as good as a second copy.

TRL's own trainers load that second copy from the path in the model's config: what they give is what
ours must give, to the last bit.
"""

import pytest
import torch
from tests.integrations.trl_runs import (
    MARKED,
    PAIRS,
    PROMPTS,
    assert_same,
    dpo_config,
    expanded,
    grpo_config,
    kto_config,
    letters,
    load_base,
    losses,
    rloo_config,
    trained,
)
from tests.laws.architectures import make_base
from transformers import LlamaForCausalLM, PreTrainedModel
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer

from controlllm.common.errors import ConfigError, ModelError
from controlllm.integrations import BaseReference, ControlLLMCallback
from controlllm.integrations.trl import (
    ControlLLMDPOTrainer,
    ControlLLMGRPOTrainer,
    ControlLLMKTOTrainer,
    ControlLLMRLOOTrainer,
)

DPO = {
    "accumulated, checkpointed, reentrant": {
        "accumulation": 2,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "precomputed": {"precompute_ref_log_probs": True},
    "bf16, evaluated": {"bf16": True, "eval_strategy": "steps", "eval_steps": 1},
    "ipo and sft": {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]},
}
GRPO = {
    "reused, checkpointed": {
        "num_iterations": 2,
        "epsilon": 0.2,
        "gradient_checkpointing": True,
    },
    "dapo": {"loss_type": "dapo", "accumulation": 2},
    "no KL": {"beta": 0.0},
}


def run_dpo(trainer_class, folder, tmp_path, tokenizer, model=None, options=None, **arguments):
    model = expanded(folder) if model is None else model
    config = dpo_config(tmp_path / trainer_class.__name__, **options or {})
    arguments |= {"train_dataset": PAIRS, "processing_class": tokenizer}
    if config.eval_strategy != "no":
        arguments["eval_dataset"] = PAIRS.select(range(4))
    trainer = trainer_class(model=model, args=config, callbacks=[ControlLLMCallback()], **arguments)
    trainer.train()
    return trainer


def run_grpo(trainer_class, folder, tmp_path, tokenizer, model=None, options=None):
    trainer = trainer_class(
        model=expanded(folder) if model is None else model,
        reward_funcs=letters,
        args=grpo_config(tmp_path / trainer_class.__name__, **options or {}),
        train_dataset=PROMPTS,
        processing_class=tokenizer,
        callbacks=[ControlLLMCallback()],
    )
    trainer.train()
    return trainer


def assert_equal_runs(ours, theirs):
    assert isinstance(theirs.ref_model, LlamaForCausalLM) or ours.ref_model is None
    assert losses(ours) == losses(theirs)
    assert_same(ours.model, theirs.model, exact=True)


@pytest.mark.parametrize("name", DPO)
def test_dpo_equals_a_second_copy(talking_folder, tmp_path, pico_tokenizer, name):
    # TRL itself would precompute by the policy at its start, and load nothing.
    copy = {"ref_model": load_base(talking_folder)} if name == "precomputed" else {}
    arguments = (talking_folder, tmp_path, pico_tokenizer)
    ours = run_dpo(ControlLLMDPOTrainer, *arguments, options=DPO[name])
    theirs = run_dpo(DPOTrainer, *arguments, options=DPO[name], **copy)
    assert_equal_runs(ours, theirs)
    rewards = [abs(row["rewards/margins"]) for row in losses(ours)]
    assert len(rewards) == 3 and min(rewards) > 1e-3


@pytest.mark.parametrize("name", GRPO)
def test_grpo_equals_a_second_copy(talking_folder, tmp_path, pico_tokenizer, name):
    arguments = (talking_folder, tmp_path, pico_tokenizer)
    ours = run_grpo(ControlLLMGRPOTrainer, *arguments, options=GRPO[name])
    theirs = run_grpo(GRPOTrainer, *arguments, options=GRPO[name])
    assert_equal_runs(ours, theirs)
    rewards = [row["reward"] for row in losses(ours) if "reward" in row]
    assert len(set(rewards)) > 1
    if name != "no KL":
        assert min(row["kl"] for row in losses(ours)) > 1e-3


@pytest.mark.parametrize("name", ["kto", "rloo"])
def test_kto_and_rloo_equal_a_second_copy(talking_folder, tmp_path, pico_tokenizer, name):
    options = {"accumulation": 2, "gradient_checkpointing": True}
    if name == "kto":
        classes = (ControlLLMKTOTrainer, KTOTrainer)
        config, given = kto_config, {"train_dataset": MARKED}
    else:
        classes = (ControlLLMRLOOTrainer, RLOOTrainer)
        config, given = rloo_config, {"train_dataset": PROMPTS, "reward_funcs": letters}
    trainers = []
    for trainer_class in classes:  # each seeds itself when it is made
        trainer = trainer_class(
            model=expanded(talking_folder),
            args=config(tmp_path / trainer_class.__name__, **options),
            processing_class=pico_tokenizer,
            callbacks=[ControlLLMCallback()],
            **given,
        )
        trainer.train()
        trainers.append(trainer)
    assert_equal_runs(*trainers)
    assert max(abs(row["kl"]) for row in losses(trainers[0])) > 1e-3


def test_the_reference_is_not_the_policy(talking_folder, tmp_path, pico_tokenizer):
    """Or the tests above could not fail: with the policy as reference, margins begin at 0."""
    policy = expanded(talking_folder)
    arguments = (talking_folder, tmp_path, pico_tokenizer)
    other = run_dpo(DPOTrainer, *arguments, policy, ref_model=expanded(talking_folder))
    ours = run_dpo(ControlLLMDPOTrainer, *arguments)
    assert losses(other)[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert losses(ours) != losses(other)


def test_nothing_is_loaded_or_copied(talking_folder, tmp_path, pico_tokenizer, monkeypatch):
    models = [expanded(talking_folder), expanded(talking_folder)]

    def refuse(*args, **kwargs):
        raise AssertionError("a second model was made")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(PreTrainedModel, "__init__", refuse)
    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", refuse, raising=False)
    dpo = run_dpo(ControlLLMDPOTrainer, None, tmp_path, pico_tokenizer, models[0])
    grpo = run_grpo(ControlLLMGRPOTrainer, None, tmp_path, pico_tokenizer, models[1])
    for trainer in (dpo, grpo):
        assert [*trainer.ref_model.parameters()] == [*trainer.ref_model.buffers()] == []
        assert [*trainer.ref_model.modules()] == [trainer.ref_model]
    with pytest.raises(AssertionError, match="a second model"):
        run_dpo(DPOTrainer, None, tmp_path, pico_tokenizer, models[0])


def test_the_reference_leaves_no_trace(talking_folder):
    """Neither in modes, nor in what the divergence reads, nor after an error."""
    model = expanded(talking_folder).train()
    model.blocks[1].pretrained.eval()
    modes = [module.training for module in model.modules()]
    ids = torch.tensor([[5, 6, 7, 8]])
    reference, base = BaseReference(model), load_base(talking_folder)
    model(input_ids=ids)
    read, divergence = model._state.last_inputs, model.divergence
    assert torch.equal(reference(input_ids=ids[:, :2]).logits, base(input_ids=ids[:, :2]).logits)
    with pytest.raises(IndexError):
        reference(input_ids=ids + 259)
    assert model._state.last_inputs is read and model.divergence == divergence
    assert [module.training for module in model.modules()] == modes
    assert not torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_dropout_is_off_in_the_reference(pico_llama):
    from controlllm import expand

    model = expand(pico_llama(attention_dropout=0.5), num_blocks=2).train()
    ids = torch.arange(3, 19)[None]
    reference = BaseReference(model)
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        base = pico_llama()(input_ids=ids).logits
        assert torch.equal(reference(input_ids=ids).logits, base)


def test_caches_are_told_apart_by_the_base_alone(talking_folder, pico_llama):
    """TRL keeps what a reference has computed, under a hash of its state dict."""
    from trl.trainer.utils import hash_module

    from controlllm import expand

    hashes = [
        hash_module(BaseReference(model))
        for model in (
            expanded(talking_folder),
            expand(load_base(talking_folder), num_blocks=2),
            expand(pico_llama(seed=1), num_blocks=2),
        )
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_peft_around_the_model(talking_folder, tmp_path, pico_tokenizer):
    """The reference has neither the expansion nor the adapters."""
    from peft import LoraConfig, get_peft_model

    def wrapped():
        torch.manual_seed(0)
        model = expanded(talking_folder)
        names = set(trained(model))
        config = LoraConfig(r=2, target_modules=r".*layers\.[02]\.self_attn\.q_proj")
        around = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name in names)
        return around

    arguments = (talking_folder, tmp_path, pico_tokenizer)
    ours = run_dpo(ControlLLMDPOTrainer, *arguments, wrapped())
    theirs = run_dpo(DPOTrainer, *arguments, wrapped(), ref_model=load_base(talking_folder))
    assert_equal_runs(ours, theirs)
    assert {"lora_A", "expanded"} <= {p for n in trained(ours.model) for p in n.split(".")}


def test_another_reference_can_be_given(talking_folder, tmp_path, pico_tokenizer):
    start = expanded(talking_folder)
    arguments = (talking_folder, tmp_path, pico_tokenizer)
    trainer = run_dpo(ControlLLMDPOTrainer, *arguments, ref_model=start)
    assert trainer.ref_model is start


def test_trls_own_trainer_takes_the_start_where_it_precomputes(
    talking_folder, tmp_path, pico_tokenizer
):
    """A way to have the result of SFT as reference without a copy."""
    arguments = (talking_folder, tmp_path, pico_tokenizer)
    trainer = run_dpo(DPOTrainer, *arguments, options={"precompute_ref_log_probs": True})
    assert trainer.ref_model is None
    assert losses(trainer)[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(losses(trainer)[-1]["rewards/margins"]) > 1e-3


def test_a_base_that_trains_is_no_reference(talking_folder):
    model = expanded(talking_folder, freeze=["blocks", "head", "norm"])
    with pytest.raises(ModelError, match="embeddings of the base train"):
        BaseReference(model)


def grown(folder):
    model = expanded(folder, expand_ends=True)
    model.resize_token_embeddings(261)
    return model


def test_expanded_ends_with_added_tokens(talking_folder, tmp_path, pico_tokenizer):
    """The reference is the base with its own head and vocabulary."""
    arguments = (talking_folder, tmp_path, pico_tokenizer)
    ours = run_dpo(ControlLLMDPOTrainer, *arguments, grown(talking_folder))
    theirs = run_dpo(
        DPOTrainer, *arguments, grown(talking_folder), ref_model=load_base(talking_folder)
    )
    for row, other in zip(losses(ours), losses(theirs), strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    assert_same(ours.model, theirs.model)


def test_added_tokens_have_no_reference(talking_folder):
    reference = BaseReference(grown(talking_folder))
    ids = torch.tensor([[5, 6, 258, 260]])
    reference(input_ids=ids, labels=torch.tensor([[-100, 6, 258, -100]]))
    with pytest.raises(ModelError, match="knows 259 tokens"):
        reference(input_ids=ids, labels=ids)


OPTIONS = {
    "sync_ref_model": "never changes",
    "use_liger_kernel": "none for 'controlllm'",
    "cast_lm_head_to_fp32": "a second time",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_cannot_work(talking_folder, tmp_path, pico_tokenizer, name):
    with pytest.raises(ConfigError, match=OPTIONS[name]):
        run_grpo(
            ControlLLMGRPOTrainer, talking_folder, tmp_path, pico_tokenizer, options={name: True}
        )


def test_a_given_reference_may_follow_the_policy(talking_folder, tmp_path, pico_tokenizer):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    arguments = (talking_folder, tmp_path, pico_tokenizer)
    with pytest.raises(ConfigError, match="never changes"):
        run_dpo(ControlLLMDPOTrainer, *arguments, options=options)
    other = expanded(talking_folder)
    trainer = run_dpo(ControlLLMDPOTrainer, *arguments, options=options, ref_model=other)
    assert_same(trainer.model, other, exact=True)


def test_zero3_takes_no_reference_without_parameters(talking_folder, tmp_path):
    pytest.importorskip("deepspeed")
    from accelerate import DeepSpeedPlugin

    config = dpo_config(tmp_path)
    config.deepspeed_plugin = DeepSpeedPlugin(zero_stage=3)
    with pytest.raises(ConfigError, match="Use ZeRO-2 or FSDP2"):
        ControlLLMDPOTrainer(expanded(talking_folder), args=config, train_dataset=PAIRS)


def test_models_that_are_not_expanded(talking_folder, tmp_path, pico_tokenizer):
    from peft import LoraConfig

    arguments = (talking_folder, tmp_path, pico_tokenizer)
    with pytest.raises(ModelError, match="expanded already"):
        run_dpo(ControlLLMDPOTrainer, *arguments, str(talking_folder))
    with pytest.raises(ModelError, match="no expanded model"):
        run_grpo(ControlLLMGRPOTrainer, *arguments, load_base(talking_folder))
    with pytest.raises(ConfigError, match="would freeze the expanded blocks"):
        run_dpo(ControlLLMDPOTrainer, *arguments, peft_config=LoraConfig())


def test_an_expansion_that_is_an_adapter_needs_no_reference_of_ours():
    from peft import get_peft_model

    from controlllm.integrations.peft import ControlLLMPeftConfig

    model = get_peft_model(make_base("llama"), ControlLLMPeftConfig(num_blocks=2))
    with pytest.raises(ModelError, match="TRL disables"):
        BaseReference(model)
