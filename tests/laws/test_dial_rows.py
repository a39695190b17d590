"""An alpha per row gives what a run at that alpha gives; rows at 0 are the base, bit for bit."""

import pytest
import torch
from tests.laws.architectures import make_base
from tests.laws.models import INTERPOLATORS, batch, greedy, make_trained

from controlllm import collapse, expand, load_sidecar, load_sidecars
from controlllm.common.errors import ConfigError, ModelError

NAN = float("nan")
CASES = [
    *(("llama", variant) for variant in (*INTERPOLATORS, "concat", "stack", "hybrid", "ends")),
    *((name, "hybrid") for name in ("gemma3", "gpt-neox", "mixtral")),
    *((name, "ends") for name in ("llama-tied", "gemma2", "gpt2", "qwen2-windowed")),
]
ALL = pytest.mark.parametrize("name, variant", CASES)
ROWS = torch.tensor([0.0, 0.3, NAN, 1.0])


def ids():
    return torch.randint(3, 61, (4, 7), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits_at(model, alpha, **inputs):
    model.set_alpha(alpha)
    return model(**({"input_ids": ids()} | inputs)).logits


@ALL
def test_rows_are_the_runs_at_their_alphas(name, variant):
    model = make_trained(name, variant)
    rows = logits_at(model, ROWS)
    with torch.no_grad():
        assert torch.equal(rows[0], make_base(name)(input_ids=ids()).logits[0])
    for row, alpha in enumerate((0.0, 0.3, None, 1.0)):
        single = logits_at(model, alpha)
        torch.testing.assert_close(rows[row], single[row], rtol=1e-4, atol=1e-4)
        others = [r for r in range(4) if r != row]
        assert (rows[others] - single[others]).abs().max() > 0.01


@ALL
def test_tokens_are_the_runs_at_their_alphas(name, variant):
    """In a causal model the first tokens do not see what the later ones are turned to."""
    model = make_trained(name, variant)
    turned = torch.tensor([0.0, 0.0, 0.0, 0.7, 0.7, NAN, 1.0]).expand(4, 7)
    by_token = logits_at(model, turned)
    with torch.no_grad():
        base = make_base(name)(input_ids=ids()).logits
    assert torch.equal(by_token[:, :3], base[:, :3])
    rows = logits_at(model, torch.tensor([0.0, 0.3, NAN, 1.0])[:, None].expand(4, 7))
    assert torch.equal(rows, logits_at(model, ROWS))


@pytest.mark.parametrize("variant", ["ends", "hybrid", "slerp", "moe", "prog"])
def test_what_a_copy_computes_never_leaks_into_a_row_at_zero(variant):
    model = make_trained("llama", variant)
    for part in model._expansion.parts():
        for parameter in part.expanded.parameters():
            parameter.data.fill_(torch.inf)
    rows = logits_at(model, torch.tensor([0.0, 0.0, 0.5, NAN]))
    with torch.no_grad():
        assert torch.equal(rows[:2], make_base("llama")(input_ids=ids()).logits[:2])
    assert not rows[2:].isfinite().any()


def test_no_name_is_the_base_whether_layers_or_sidecars_are_named(tmp_path):
    model = make_trained("llama", "lerp")
    model.save_sidecar(tmp_path)
    with torch.no_grad():
        expected = make_base("llama")(input_ids=ids()).logits
    named = load_sidecars(make_base("llama"), {"maths": tmp_path})
    for one in (model, named):
        one.set_alpha(0.5)
        assert torch.equal(logits_at(one, {}), expected)
    assert model.expansion.dial == 0
    model.set_alpha(None)
    model.set_alpha(dict.fromkeys(model.blocks))
    assert model.expansion.dial is None  # as trained, and so it is saved


def test_a_layer_takes_rows_and_others_numbers():
    model = make_trained("llama", "ends")
    layers = [*model.blocks]
    rows = logits_at(model, {layers[0]: torch.tensor([0.1, 0.9, NAN, 0.0]), layers[1]: 0.4, -1: 0})
    for row, alpha in enumerate((0.1, 0.9, None, 0.0)):
        single = logits_at(model, {layers[0]: alpha})
        torch.testing.assert_close(rows[row], single[row], rtol=1e-4, atol=1e-4)
    assert model.expansion.dial == {layers[0]: 0.0, layers[1]: 0.4, -1: 0}


def test_a_tensor_that_is_changed_later_changes_nothing():
    model, alpha = make_trained("llama"), torch.tensor([0.0, 0.3, NAN, 1.0])
    before = logits_at(model, alpha)
    alpha.fill_(7.0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids()).logits, before)


def test_a_dial_may_be_a_function_that_is_asked_at_each_forward():
    model = make_trained("llama", "ends")
    expected = logits_at(model, ROWS)
    model.set_alpha(None)
    asked = []

    def answer(x):
        asked.append(x.shape)
        return ROWS[:, None, None]

    for part in model._expansion.parts():
        part.dial = answer
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids()).logits, expected)
    assert {shape[:2] for shape in asked} == {(4, 7)}
    assert model.alphas() == {}


@pytest.mark.parametrize("variant", ["concat", "stack", "ends"])
def test_rows_write_what_they_write_alone(variant):
    model = make_trained("llama", variant)
    model.set_alpha(torch.tensor([0.0, 0.8]))
    together = greedy(model)
    for row, alpha in enumerate((0.0, 0.8)):
        model.set_alpha(alpha)
        assert torch.equal(greedy(model)[row], together[row])
    model.set_alpha(torch.tensor([0.0, 0.8]).repeat_interleave(2))
    assert greedy(model, num_beams=2).shape == together.shape


def test_tokens_of_the_last_logits_only():
    model = make_trained("llama", "ends")
    turned = torch.rand(4, 7, generator=torch.Generator().manual_seed(4)).round(decimals=1)
    whole = logits_at(model, turned)
    for kept in (1, 3, torch.tensor([2, 5])):
        some = logits_at(model, turned, logits_to_keep=kept)
        place = slice(-kept, None) if isinstance(kept, int) else kept
        torch.testing.assert_close(some, whole[:, place], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_rows_at_zero_never_predict_added_tokens(name):
    model = make_trained(name, "ends")
    model.resize_token_embeddings(63)
    rows = logits_at(model, ROWS)
    assert rows.shape[-1] == 63
    assert rows[0, :, 61:].isneginf().all() and rows[1:].isfinite().all()
    with torch.no_grad():
        assert torch.equal(rows[0, :, :61], make_base(name)(input_ids=ids()).logits[0])
    text = ids().index_fill(1, torch.tensor([2]), 62)  # the base has no row for it: the copy's
    by_row = logits_at(model, ROWS, input_ids=text)
    for row, alpha in enumerate((0.0, 0.3, None, 1.0)):
        single = logits_at(model, alpha, input_ids=text)
        torch.testing.assert_close(by_row[row], single[row], rtol=1e-4, atol=1e-4)


def test_a_relaxed_norm_follows_the_row():
    model = expand(make_base("llama"), num_blocks=2, relaxed_norm="dynamic", alpha=0.8)
    rows = logits_at(model, ROWS)
    for row, alpha in enumerate((0.0, 0.3, None, 1.0)):
        single = logits_at(model, alpha)
        torch.testing.assert_close(rows[row], single[row], rtol=1e-4, atol=1e-4)
    assert (logits_at(model, 1.0) - logits_at(model, None)).abs().max() > 0.01


@pytest.mark.parametrize(
    "alpha, words",
    [
        (torch.tensor([0.1, 1.5]), "alpha of row 1 is 1.5"),
        (torch.tensor([[0.1], [-1.0]]), "alpha of row 1 is -1"),
        (torch.tensor(0.5), "shape"),
        (torch.zeros(0), "shape"),
        (torch.zeros(2, 2, 2), "shape"),
        ({3: torch.tensor([torch.inf])}, "alpha of row 0 is inf"),
        ({2: torch.tensor([0.5])}, "layers"),
    ],
)
def test_wrong_alphas_are_refused_and_change_nothing(alpha, words):
    model = make_trained("llama")
    model.set_alpha(0.2)
    before = logits_at(model, 0.2)
    with pytest.raises(ConfigError, match=words):
        model.set_alpha(alpha)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids()).logits, before)


@pytest.mark.parametrize("variant", ["concat", "stack", "ends"])
def test_alphas_that_do_not_fit_the_batch_are_refused(variant):
    model = make_trained("llama", variant)
    with pytest.raises(ModelError, match="alpha has 3 rows, the batch 4"):
        logits_at(model, torch.zeros(3))
    with pytest.raises(ModelError, match="alpha has 6 tokens, the forward pass 7"):
        logits_at(model, torch.full((4, 6), 0.5))


def test_joined_weights_exist_at_one_alpha_only():
    model = make_trained("llama", "ends")
    model.set_alpha(torch.tensor([0.5, 0.5]))
    for end in (model.get_input_embeddings(), model.lm_head):
        with pytest.raises(ModelError, match="set per row"):
            end.weight  # noqa: B018
    with pytest.raises(ModelError, match="one alpha per row"):
        collapse(model)


def test_a_saved_model_has_the_numbers_that_were_set_last(tmp_path):
    model = make_trained("llama", "ends")
    model.set_alpha(0.3)
    expected = logits_at(model, 0.3)
    model.set_alpha(torch.tensor([0.0, 1.0, 0.5, NAN]))
    model.save_sidecar(tmp_path / "sidecar")
    loaded = load_sidecar(make_base("llama"), tmp_path / "sidecar")
    assert loaded.expansion.dial == 0.3
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids()).logits, expected)


def test_adapters_are_on_or_off_for_all_rows():
    peft = pytest.importorskip("peft")
    model = make_trained("llama")
    config = peft.LoraConfig(target_modules=["layers.0.mlp.up_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    with pytest.raises(ConfigError, match="on or off for all rows"):
        model.set_alpha(torch.tensor([0.0, 0.5, 1.0, NAN]))
    with torch.no_grad():
        base = make_base("llama")(input_ids=ids()).logits
    assert torch.equal(logits_at(model, torch.zeros(4)), base)
    half = logits_at(model, torch.full((4,), 0.5))
    torch.testing.assert_close(half, logits_at(model, 0.5), rtol=1e-5, atol=1e-5)


def test_what_is_told_of_alphas_is_their_mean():
    model = make_trained("llama")
    trained = model.alphas()
    model.set_alpha(torch.tensor([0.0, 1.0, 0.25, NAN]))
    first = next(iter(model.blocks))
    assert model.alphas()[first] == pytest.approx((1.25 + trained[first]) / 4)
    gated = make_trained("llama", "dlerp")
    with gated.record_alpha():
        logits_at(gated, ROWS)
    measured = gated.expansion.mean_alpha  # the gates, before any dial
    assert all(gated.alphas()[k] == pytest.approx(v * 2.3 / 4) for k, v in measured.items())


def test_a_row_at_zero_has_no_divergence():
    model = make_trained("llama").train()
    inputs = batch()
    losses = []
    for alpha in (torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.5])):
        model.set_alpha(alpha)
        with model.explicit_divergence() as terms:
            model(**inputs)
        losses.append(next(iter(terms.values.values())))
    assert not losses[0][0].any()
    assert torch.equal(losses[0][1], losses[1][1]) and losses[1][0].min() > 0


@pytest.mark.slow
def test_rows_turn_in_a_compiled_model_without_compiling_again():
    model = make_trained("llama", "ends")
    compiled = torch.compile(model.base.model, backend="eager", fullgraph=True)
    once = torch._dynamo.config.patch(error_on_recompile=True)
    with torch.no_grad(), once:
        for alpha in (ROWS, ROWS.flip(0)):
            model.set_alpha(alpha)
            expected = model.base.model(input_ids=ids()).last_hidden_state
            found = compiled(input_ids=ids()).last_hidden_state
            torch.testing.assert_close(found, expected)
