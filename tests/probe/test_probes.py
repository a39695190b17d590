"""Each probe says what the model computed, and leaves it as it was."""

import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from tests.evaluate.test_html_report import HOSTILE, harmless
from tests.probe.conftest import LEARN, RETAIN

from controlllm import ExpansionConfig, expand, load_sidecars
from controlllm.common.errors import ConfigError, ModelError
from controlllm.probe import PROBES, Finding, Study, StudySettings, Text, find, probe_page
from controlllm.probe.contract import OWN
from controlllm.probe.drawing import Scale, coloured, heat_map, scale_for, visible
from controlllm.probe.pairs import RELATIONS, phrases
from controlllm.probe.probes.analogies import closeness, states
from controlllm.probe.probes.attention import attention_maps
from controlllm.probe.probes.blocks import leave_one_out, suggested
from controlllm.probe.probes.dial import sweep
from controlllm.probe.probes.lens import read_states
from controlllm.probe.probes.reading import measured
from controlllm.probe.probes.tokens import per_token


def state_of(model):
    return [part.dial for part in model._expansion.parts()], dict(model.config.expansion)


@pytest.mark.parametrize("settings", [{}, {"structure": "stack"}, {"expand_ends": True}], ids=str)
def test_all_probes_speak_and_leave_the_model_as_it_was(study_of, settings):
    study = study_of(RETAIN, **settings)
    study.model.set_alpha({1: 0.3})
    study.model.train()
    before, hooks = state_of(study.model), sum(len(m._forward_hooks) for m in study.model.modules())
    found = find(study)
    assert list(found) == list(OWN) == PROBES.names_in_order()
    assert all(isinstance(one, Finding) for one in found.values()), found
    assert state_of(study.model) == before and study.model.training
    assert sum(len(m._forward_hooks) for m in study.model.modules()) == hooks
    page = harmless(probe_page("Inside", {"model": "m"}, found))
    for one in found.values():
        assert not re.search("dark|white", one.shows + one.look_for, re.I)  # there is a dark mode
        assert one.title in page.words and one.look_for in page.words and one.result in page.words
    assert "nan" not in page.words and "inf" not in page.words


def test_movement_by_hand(study_of):
    study = study_of()
    model, block = study.model, study.model.blocks[1]
    found = find(study, ["movement"])["movement"]
    ratios, angles = [], []
    for text in study.learn:
        x = model(text.ids, output_hidden_states=True).hidden_states[1]
        table = model.model.rotary_emb(x, torch.arange(x.shape[1])[None])
        with torch.no_grad():
            mask = torch.full((1, 1, x.shape[1], x.shape[1]), -torch.inf).triu(1)
            call = {"position_embeddings": table, "attention_mask": mask}
            p, e = block.pretrained(x, **call), block.expanded(x, **call)
        ratios.append((e - p).norm(dim=-1)[0] / p.norm(dim=-1)[0])
        angles.append((e * p).sum(-1)[0] / p.norm(dim=-1)[0] / e.norm(dim=-1)[0])
    assert found.scalars["relative_change"][1] == pytest.approx(
        torch.cat(ratios).mean().item(), rel=1e-4
    )
    assert found.scalars["cosine"][1] == pytest.approx(torch.cat(angles).mean().item(), rel=1e-4)
    assert set(found.scalars["cosine"]) == {1, 3}


def test_alpha_is_the_dial_times_the_gate(study_of):
    study = study_of(interpolator="dlerpin")
    trained = find(study, ["alpha"])["alpha"]
    study.model.set_alpha({1: 0.5})
    turned = find(study, ["alpha"])["alpha"]
    assert turned.scalars["alpha"][1] == pytest.approx(0.5 * trained.scalars["alpha"][1])
    assert "differ from token to token" in trained.result
    constant = find(study_of(alpha=0.25), ["alpha"])["alpha"]
    assert constant.scalars["alpha"] == pytest.approx({1: 0.25, 3: 0.25})
    assert "no gate decides" in constant.result


def test_numbers_per_token_are_those_of_two_models(study_of, pico_llama):
    study, base = study_of(), pico_llama()
    text = study.learn[0]
    kl, change = per_token(study, text)
    with torch.no_grad():
        p, q = (m(text.ids).logits[0].double().log_softmax(-1) for m in (base, study.model))
    expected = (p.exp() * (p - q)).sum(-1)[:-1]
    assert kl[1:] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    places = range(text.ids.shape[1] - 1)
    said = [(q - p)[i, text.ids[0, i + 1]].item() for i in places]
    assert change[1:] == pytest.approx(said, rel=1e-3, abs=1e-5)
    assert math.isnan(kl[0]) and math.isnan(change[0])


def test_leaving_a_block_out_is_alpha_0_there(study_of):
    study = study_of(RETAIN, expand_ends=True)
    whole = [study.losses(study.learn), study.losses(study.retain)]
    left = leave_one_out(study, whole)
    assert [one.part for one in left] == [1, 3, -1]
    for one in left:
        study.model.set_alpha({one.part: 0.0})
        rises = []
        for texts in (study.learn, study.retain):
            losses = []
            for text in texts:
                with torch.no_grad():
                    losses.append(
                        study.model(text.ids, labels=text.ids).loss * (text.ids.shape[1] - 1)
                    )
            rises.append((sum(losses) / sum(t.ids.shape[1] - 1 for t in texts)).item())
        study.model.set_alpha(None)
        before = [sum(x for x, _ in w) / sum(n for _, n in w) for w in whole]
        assert one.gain_lost.estimate == pytest.approx(rises[0] - before[0], rel=1e-3, abs=1e-5)
        avoided = one.forgetting_avoided
        assert avoided.estimate == pytest.approx(before[1] - rises[1], rel=1e-3, abs=1e-5)
        assert avoided.low <= avoided.estimate <= avoided.high


def test_a_loss_that_rose_is_said_to_have_risen(study_of):
    study = study_of()
    with study.model.disable_expansion():  # what the base itself writes
        ids = study.model.generate(study.learn[0].ids[:, :3], max_new_tokens=20, do_sample=False)
    study = replace(study, learn=[Text(ids, ids, study.tokenizer)] * 2)
    told = find(study, ["blocks"])["blocks"].result
    assert re.match(r"The loss on the learned texts rose by \d", told)


def test_what_is_suggested_carries_learning_and_expand_takes_it(study_of, pico_llama):
    study = study_of(layers=[0, 1, 2, 3])
    text = study.learn[0]
    # What the model says by itself it must have "learned"; block 2 alone has nothing to say.
    block = study.model.blocks[2]
    block.expanded.load_state_dict(block.pretrained.state_dict())
    ids = text.ids.clone()
    for _ in range(4):
        ids[0, 1:] = study.logits(Text(ids, ids, study.tokenizer))[0, :-1].argmax(-1)
    labels = ids.clone()
    labels[0, 0] = -100
    learned = Study(study.model, study.tokenizer, [Text(ids, labels, study.tokenizer)] * 3)
    found = find(learned, ["blocks"])["blocks"]
    assert found.scalars["gain_lost"][2] == 0
    assert found.layers and 2 not in found.layers
    left = leave_one_out(learned, [learned.losses(learned.learn)])
    assert suggested(left) == found.layers
    model = expand(pico_llama(), ExpansionConfig(layers=list(found.layers)))
    assert tuple(model.blocks) == found.layers


def test_one_text_has_no_interval(study_of):
    study = study_of()
    one = Study(study.model, study.tokenizer, study.learn[:1], settings=study.settings)
    found = find(one, ["blocks"])["blocks"]
    assert found.layers == () and "nothing is suggested" in found.result
    assert "One text has no spread" in harmless(probe_page("p", {}, {"blocks": found})).words


def test_the_lens_of_the_last_block_is_what_the_model_says(study_of):
    for settings in ({}, {"expand_ends": True}):
        study = study_of(**settings)
        text = study.learn[0]
        said = read_states(study, measured(study, text), 3)
        best = study.logits(text)[0].softmax(-1).max(-1)
        assert torch.equal(said["merged"].ids, best.indices)
        torch.testing.assert_close(said["merged"].probabilities, best.values)
        assert not torch.equal(said["frozen"].probabilities, said["copy"].probabilities)


def test_attention_maps_are_those_of_both_branches(study_of):
    study = study_of()
    implementation = study.model.config.get_text_config()._attn_implementation
    maps = attention_maps(study, study.learn[0])
    assert study.model.config.get_text_config()._attn_implementation == implementation
    length = study.learn[0].ids.shape[1]
    for p, e in maps.values():
        assert p.shape == e.shape == (1, 4, length, length)
        torch.testing.assert_close(p.sum(-1), torch.ones(1, 4, length))
    study.model.set_attn_implementation("eager")
    given = study.model(study.learn[0].ids, output_attentions=True).attentions
    torch.testing.assert_close(maps[1][0], given[1])
    assert not torch.allclose(*maps[3])


def test_pictures_of_a_chat_begin_where_its_targets_do(study_of, monkeypatch):
    study, drawn = study_of(), []
    ids = study.learn[0].ids.repeat(1, 8)[:, :40]
    labels = ids.clone()
    labels[0, :30] = -100
    text = Text(ids, labels, study.tokenizer)
    assert text.window(8) == range(29, 37) and text.window(20) == range(20, 40)
    assert Text(ids, ids, study.tokenizer).window(8) == range(8)
    module = sys.modules[attention_maps.__module__]
    monkeypatch.setattr(module, "MOST_TOKENS", 8)
    monkeypatch.setattr(module, "heat_map", lambda *args, **kwargs: drawn.append(args))
    find(replace(study, learn=[text]), ["attention"])
    rows, columns, *_ = drawn[1]
    assert columns == [text.pieces[0], *text.pieces[29:37]] and len(rows) == 9
    assert not any(math.isnan(x) for x in rows[-1][1]) and math.isnan(rows[1][1][2])
    # Attention to what stands between the first token and the window is not drawn.
    assert sum(rows[0][1][:1]) == pytest.approx(1) and sum(rows[-1][1]) < 1


def test_analogies_are_forty_in_eight_relations(study_of):
    assert len(phrases()) == len({p for _, p in phrases()}) == 40
    assert [len(pairs) for pairs in RELATIONS.values()] == [5] * 8
    assert closeness(torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]]), ["a", "a", "b", "b"]) == 2
    study = study_of()
    found = states(study)
    assert {k: set(v) for k, v in found.items()} == {
        k: {"frozen", "copy", "merged"} for k in (1, 3)
    }
    ids = torch.tensor([study.tokenizer(phrases()[7][1]).input_ids])
    with torch.no_grad():
        state = study.model(ids, output_hidden_states=True).hidden_states[2][0, -1]
    torch.testing.assert_close(found[1]["merged"][7], state)


def test_tokens_counts_targets_only(study_of):
    study = study_of()
    for text in study.learn:
        text.labels[0, :-2] = -100  # a prompt, and two tokens of an answer
    kls, changes = zip(*(per_token(study, text) for text in study.learn), strict=True)
    mean_kl, mean = (sum(sum(x[-2:]) for x in each) / 6 for each in (kls, changes))
    result = find(study, ["tokens"])["tokens"].result
    assert result.startswith(f"Over 6 tokens log p changes by {mean:+.3f} nats in the mean, KL is")
    assert f"KL is {mean_kl:.3f};" in result


def test_the_dial_is_swept(study_of, pico_llama):
    study = study_of(RETAIN)
    curves, written = sweep(study, [0.0, 1.0])
    base = pico_llama()
    for name, texts in {"texts": study.learn, "texts to keep": study.retain}.items():
        with torch.no_grad():
            sums = [base(t.ids, labels=t.ids).loss * (t.ids.shape[1] - 1) for t in texts]
        expected = -sum(sums) / sum(t.ids.shape[1] - 1 for t in texts)
        assert curves[name][0] == (0.0, pytest.approx(expected.item(), rel=1e-4))
        assert curves[name][1][1] != curves[name][0][1]
    begin = study.learn[0].ids[:, : study.learn[0].ids.shape[1] // 2]
    plain = base.generate(begin, max_new_tokens=4, do_sample=False)[0, begin.shape[1] :]
    assert [alpha for alpha, _ in written] == [0.0, 1.0]
    assert written[0][1] == study.tokenizer.decode(plain, skip_special_tokens=True)


def test_what_cannot_be_looked_into_is_refused_and_said(
    study_of, pico_llama, pico_tokenizer, tmp_path
):
    ids = torch.tensor([[1, 50, 60]])
    with pytest.raises(ModelError, match="LlamaForCausalLM is not expanded"):
        Study(pico_llama(), pico_tokenizer, [Text(ids, ids, pico_tokenizer)])
    study = study_of()
    with pytest.raises(ConfigError, match="Did you mean 'movement'"):
        find(study, ["movementt"])
    folders = {name: str(tmp_path / name) for name in ("maths", "zh")}
    for folder in folders.values():
        study.model.save_sidecar(folder)
    several = load_sidecars(pico_llama(), folders)
    with pytest.raises(ModelError, match=r"several sidecars \(maths, zh\)"):
        Study(several, pico_tokenizer, study.learn)
    with pytest.raises(ConfigError, match="names no setting of the dial"):
        StudySettings(alphas=[])
    found = {"own <b>": "it is dark"}
    assert "Nothing is shown here: it is dark" in harmless(probe_page("p", {}, found)).words


def test_a_probe_of_ones_own(study_of, monkeypatch):
    monkeypatch.setattr(PROBES, "_things", dict(PROBES._things))

    @PROBES.register("mine")
    def mine(study):
        return Finding("Mine <b>", "shows", "look", f"{len(study.learn)} texts", [HOSTILE])

    found = find(study_of(), ["mine"])
    page = harmless(probe_page(HOSTILE, {HOSTILE: HOSTILE}, found))
    assert f"{len(LEARN)} texts" in page.words and "Mine <b>" in page.words


def test_hostile_texts_are_shown_and_do_nothing(study_of):
    study = study_of()
    ids = torch.tensor([study.tokenizer(HOSTILE).input_ids])
    hostile = [Text(ids, ids, study.tokenizer)] * 2
    settings = study.settings
    settings.prompt = HOSTILE
    page = probe_page(
        "p", {}, find(Study(study.model, study.tokenizer, hostile, hostile, settings))
    )
    harmless(page)
    assert "<img" not in page


def test_shades_and_cells():
    scale = Scale(2.0, "u", signed=True)
    assert [scale.shade(v) for v in (0, 1, 2, 9, -1, -0.01, math.nan)] == [
        "q0",
        "q5",
        "q10",
        "q10",
        "m5",
        "q0",
        "none",
    ]
    assert Scale(2.0, "u").shade(-1) == "q0" and Scale(1.0, "u", low=0.5).shade(0.75) == "q5"
    assert scale_for([1.0] * 99 + [1e9], "u").high == 1 and scale_for([], "u").high == 1
    assert scale_for([0.0, 0.0], "u").high == 1
    assert visible(" a\u00a0\n") == "·a⍽↵" and visible("") == "∅" and len(visible("x" * 99)) == 14
    drawn = heat_map([("row", [0.0, math.nan])], ["a", "<b>"], Scale(1.0, "u"), "t<")
    assert drawn.count("<rect") == 1 and "&lt;b&gt;" in drawn and "<b>" not in drawn
    assert re.search(
        'class="tok q5" title="a: p \\+0.500">a<', coloured(["a"], [0.5], Scale(1.0, ""), "p")
    )
