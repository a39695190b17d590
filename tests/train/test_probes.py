"""`logging.probes`: the branches' distance in the course of a run, in both back ends."""

import pytest
import torch
from tests.laws.models import batch, make_trained

from controlllm.common.facts import rules_of
from controlllm.data import DataConfig, SourceConfig, eval_batches
from controlllm.probe import probe_scalars
from controlllm.probe.quantities import cosine, relative_change
from controlllm.train import train


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_distances_are_recorded_at_each_evaluation(run_config, loaded, backend):
    training = {"backend": backend, "max_steps": 4, "eval_steps": 2}
    logging = {"probes": True, "report_to": ["jsonl", "tensorboard"]}
    result = train(run_config(training=training, logging=logging), loaded())
    layers = list(result.model.blocks)
    rows = {row["step"]: row for row in result.history if "learn/new/loss" in row}
    assert sorted(rows) == [0, 2, 4]
    for name in ("new", "old"):
        for layer in layers:
            curve = [rows[s][f"probe/{name}/relative_change/layer_{layer}"] for s in (0, 2, 4)]
            assert curve[0] == 0 < curve[1]
            assert rows[0][f"probe/{name}/cosine/layer_{layer}"] == pytest.approx(1)
            assert rows[4][f"probe/{name}/alpha/layer_{layer}"] == 0.5
    assert result.model.training
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(result.output_dir / "tensorboard")).Reload()
    scalars = events.Scalars(f"probe/new/cosine/layer_{layers[0]}")
    assert [one.step for one in scalars] == [0, 2, 4]


def test_probes_change_no_training_and_are_off_unless_asked_for(run_config, loaded):
    losses = []
    for probes in (False, True):
        folder = {"output_dir": str(run_config().training.output_dir) + str(probes)}
        run = run_config(logging={"probes": probes}, training={"max_steps": 2, **folder})
        history = train(run, loaded()).history
        losses.append([row["train/loss"] for row in history if "train/loss" in row])
        assert any(key.startswith("probe/") for row in history for key in row) is probes
    assert losses[0] == losses[1]


def test_a_setting_that_nothing_reads_is_known(run_config):
    for over in ({"data": {"learn": [], "retain": []}}, {"method": "full"}):
        run = run_config(logging={"probes": True}, **over)
        rule = next(rule for rule in rules_of(type(run)) if rule.field == "logging.probes")
        assert not rule.reads(run) and "no copies" in rule.remedy


def test_means_are_over_real_tokens_only():
    model = make_trained("llama", "dlerp")
    padded = batch()
    found = probe_scalars(model, padded)
    layer = min(model.blocks)
    rows = [
        ids[mask.bool()][None]
        for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)
    ]
    assert [row.shape[1] for row in rows] == [10, 7]
    changes, angles, alphas = [], [], []
    for ids in rows:
        with model.probe() as p, torch.no_grad():
            model(input_ids=ids)
        changes.append(relative_change(p.pretrained[layer], p.expanded[layer])[0])
        angles.append(cosine(p.pretrained[layer], p.expanded[layer])[0])
        alphas.append(p.alpha[layer][0])
    for name, values in {"relative_change": changes, "cosine": angles, "alpha": alphas}.items():
        expected = torch.cat(values).mean().item()
        assert found[f"{name}/layer_{layer}"] == pytest.approx(expected, rel=1e-4)


def test_packed_rows_give_what_single_documents_give(tmp_path, pico_tokenizer, pico_llama):
    from tests.probe.conftest import trained

    from controlllm.common.attention.attention import (
        packed_attention_for,
        register_packed_attention,
    )

    model = trained(pico_llama())
    (tmp_path / "t.txt").write_text("one two\n\nthree four five\n\nsix")
    source = SourceConfig(path=str(tmp_path / "t.txt"), text_unit="paragraph")
    padded = eval_batches(source, pico_tokenizer, DataConfig(max_length=64), 8)
    expected = probe_scalars(model, padded[0])
    register_packed_attention()
    current = model.config.get_text_config(decoder=True)._attn_implementation
    model.set_attn_implementation(packed_attention_for(current))
    packed = eval_batches(source, pico_tokenizer, DataConfig(max_length=64, packing=True), 8)
    assert probe_scalars(model, packed[0]) == pytest.approx(expected, rel=1e-4)
