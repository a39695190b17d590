"""One loss, however it is computed: checkpointed, accumulated, padded, injected or explicit."""

import pytest
import torch
from tests.laws.architectures import ARCHITECTURES, VOCAB, make_base
from tests.laws.models import INTERPOLATORS, batch, make_expanded, train
from torch.utils.checkpoint import checkpoint

from controlllm import expand
from controlllm.common.losses import cross_entropy_sum, token_mask

NAMES = pytest.mark.parametrize("name", ARCHITECTURES)
DIVERGENCES = ("mse", "nmse", "cosine", "dot", "attention")


def moved(name="llama", **settings):
    """An expanded model whose branches differ, in training mode, without gradients."""
    eager = {"attn_implementation": "eager"} if settings.get("divergence") == "attention" else {}
    model = expand(make_base(name, **eager), **{"num_blocks": 2} | settings)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for block in model.blocks.values():
            for parameter in block.expanded.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def gradients(model):
    """All gradients by name, taken away from the model."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def loss_gradients(model, **inputs):
    model(**inputs or batch()).loss.backward()
    return gradients(model)


def own_loss_gradients(model, **inputs):
    """As a loop that knows nothing of divergences: its own cross-entropy on the logits."""
    inputs = inputs or batch()
    labels = inputs["labels"]
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    total, count = cross_entropy_sum(logits, labels)
    (total / count).backward()
    return gradients(model)


def assert_same(ours, theirs, rtol=1e-4, atol=1e-5):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


def differ(ours, theirs):
    return any((ours[name] - theirs[name]).abs().max() > 1e-3 for name in theirs)


@NAMES
def test_injected_is_explicit(name):
    model = moved(name)
    if "moe" in name or "mixtral" in name:
        model.config.get_text_config().output_router_logits = False
    assert_same(own_loss_gradients(model), loss_gradients(model))
    without = moved(name, divergence_weight=0.0)
    assert differ(loss_gradients(without), loss_gradients(model))


KINDS = [(d, i) for d in DIVERGENCES for i in INTERPOLATORS]
KINDS.remove(("attention", "proj"))  # its map stands before hidden states, and is refused here


@pytest.mark.parametrize(("divergence", "interpolator"), KINDS)
def test_injected_is_explicit_for_every_kind(interpolator, divergence):
    model = moved(interpolator=interpolator, divergence=divergence)
    assert_same(own_loss_gradients(model), loss_gradients(model))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("way", [loss_gradients, own_loss_gradients], ids=["explicit", "injected"])
def test_the_gradient_arrives_exactly_once(divergence, way):
    """The divergence's part grows with its weight: twice the weight, twice the part."""
    weight = 100.0 if divergence == "cosine" else 1.0  # smooth-L1 of a small angle is tiny
    none, once, twice = (
        way(moved(divergence=divergence, divergence_weight=w)) for w in (0.0, weight, 2 * weight)
    )
    part = {name: once[name] - none[name] for name in once}
    assert differ(none, once)
    assert_same({n: twice[n] - none[n] for n in part}, {n: 2 * part[n] for n in part}, atol=1e-4)


def test_the_loss_is_cross_entropy_plus_weighted_mean_divergence():
    model = moved(divergence_weight=3.0)
    loss = model(**batch()).loss
    divergence = sum(model.divergence.values()) / 2
    plain = model.eval()(**batch()).loss
    torch.testing.assert_close(loss, plain + 3.0 * divergence)


def test_explicit_terms_are_the_same_and_nothing_is_injected():
    model = moved()
    inputs = batch()
    with model.explicit_divergence() as terms:
        output = model(**inputs)
    total, count = terms.total(token_mask(inputs))
    assert count == 17
    (output.loss + total / count).backward()
    explicit = gradients(model)
    assert_same(explicit, loss_gradients(model))
    per_block = {
        layer: (s / n).item() for layer, (s, n) in terms.per_block(token_mask(inputs)).items()
    }
    assert per_block == pytest.approx(model.divergence)


def test_evaluation_adds_nothing_to_the_loss():
    model = moved().eval()
    total, count = cross_entropy_sum(model(**batch()).logits, batch()["labels"])
    torch.testing.assert_close(model(**batch()).loss, total / count)


@NAMES
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("way", [loss_gradients, own_loss_gradients], ids=["explicit", "injected"])
def test_gradient_checkpointing_changes_no_gradient(name, reentrant, way):
    model = moved(name)
    expected = way(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    calls = count_forwards(model)
    assert_same(way(model), expected)
    assert max(calls.values()) == 2  # forward, and once more in backward
    model.gradient_checkpointing_disable()
    assert_same(way(model), expected)


def count_forwards(model):
    """How often each branch of the first expanded block runs."""
    calls = {"pretrained": 0, "expanded": 0}
    block = next(iter(model.blocks.values()))
    for branch in calls:
        attention = next(m for m in getattr(block, branch).children() if any(m.children()))

        def count(module, args, kwargs, branch=branch):
            calls[branch] += 1

        attention.register_forward_pre_hook(count, with_kwargs=True)
    return calls


@pytest.mark.parametrize("structure", ["concat", "hybrid", "ends"])
def test_gradient_checkpointing_in_every_structure(structure):
    model = train(make_expanded("llama", structure)).train()
    expected = loss_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(loss_gradients(model), expected)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("way", [loss_gradients, own_loss_gradients], ids=["explicit", "injected"])
def test_checkpointing_whole_blocks_from_outside(reentrant, way):
    """FSDP-style activation checkpointing wraps the block itself and runs its divergence twice."""
    model = moved()
    expected = way(model)
    for block in model.blocks.values():

        def forward(x, *args, inner=block.forward, **kwargs):
            return checkpoint(lambda h: inner(h, *args, **kwargs), x, use_reentrant=reentrant)

        block.forward = forward
    model.enable_input_require_grads()
    assert_same(way(model, **batch(), use_cache=False), expected)


def rows(lengths, width=12, pad_left=False):
    """Random rows of the given lengths in one padded batch."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, VOCAB, (len(lengths), width), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, width - length :] = 1 if pad_left else mask[row, width - length :]
        if not pad_left:
            mask[row, :length] = 1
    labels = ids.masked_fill(mask == 0, -100)
    if pad_left:  # a padding position predicts nothing, so the first real token is no target
        labels = labels.masked_fill(mask.cumsum(1) == 1, -100)
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}


@NAMES
def test_padding_never_counts(name):
    """Wider padding, and whatever token stands in it, changes neither loss nor gradients."""
    model = moved(name)
    narrow, wide = rows([9, 6], width=9), rows([9, 6], width=9)
    for key, value in (("input_ids", 7), ("attention_mask", 0), ("labels", -100)):
        filling = torch.full((2, 5), value)
        wide[key] = torch.cat([narrow[key], filling], dim=1)
    for way in (loss_gradients, own_loss_gradients):
        assert_same(way(model, **wide), way(model, **narrow))


def test_padding_on_the_left_never_counts():
    model = moved()
    inputs = rows([9, 6], width=9, pad_left=True)
    other = dict(
        inputs, input_ids=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 9)
    )
    assert_same(loss_gradients(model, **other), loss_gradients(model, **inputs))


@pytest.mark.parametrize("sizes", [[2, 2], [1, 1, 1, 1], [1, 3]], ids=str)
@pytest.mark.parametrize("divergence", ["mse", "cosine"])
def test_accumulated_micro_batches_are_one_big_batch(sizes, divergence):
    """With `num_items_in_batch`, as trainers pass it; rows are full: targets and tokens agree."""
    model = moved(divergence=divergence)
    whole = rows([8, 8, 8, 8], width=8)
    expected = loss_gradients(model, **whole)
    items = torch.tensor(4 * 7)
    start = 0
    for size in sizes:
        part = {key: value[start : start + size] for key, value in whole.items()}
        model(**part, num_items_in_batch=items).loss.backward()
        start += size
    assert_same(gradients(model), expected)


def test_accumulation_in_our_loops_is_exact_for_unequal_rows_too():
    model = moved()
    whole = rows([12, 3, 7, 5])
    expected = loss_gradients(model, **whole)
    items, tokens = whole["labels"][:, 1:].ne(-100).sum(), whole["attention_mask"].sum()
    for start in (0, 1, 3):
        part = {key: value[start : {0: 1, 1: 3, 3: 4}[start]] for key, value in whole.items()}
        with model.explicit_divergence() as terms:
            output = model(**part)
        cross_entropy, _ = cross_entropy_sum(output.logits, part["labels"])
        divergence, _ = terms.total(token_mask(part))
        (cross_entropy / items + divergence / tokens).backward()
    assert_same(gradients(model), expected)


def test_loops_that_divide_by_the_number_of_micro_batches():
    model = moved()
    whole = rows([8, 8, 8, 8], width=8)
    expected = own_loss_gradients(model, **whole)
    model.gradient_accumulation_steps = 2
    for start in (0, 2):
        part = {key: value[start : start + 2] for key, value in whole.items()}
        logits = model(part["input_ids"], part["attention_mask"]).logits
        total, count = cross_entropy_sum(logits, part["labels"])
        (total / count / 2).backward()
    assert_same(gradients(model), expected)


def test_labels_given_and_the_loss_left_unused():
    """Injected, as for any loop with a loss of its own; and never twice."""
    model = moved()
    inputs = rows([8, 8], width=8)
    expected = own_loss_gradients(model, **inputs)
    total, count = cross_entropy_sum(model(**inputs).logits, inputs["labels"])
    (total / count).backward()
    assert_same(gradients(model), expected)
    model.zero_grad()
    (3 * model(**inputs).loss).backward()  # a gradient scaler, say: the divergence is scaled too
    assert_same({name: grad / 3 for name, grad in gradients(model).items()}, expected)


def test_only_target_tokens_count_where_asked():
    inputs = rows([9, 9], width=9)
    inputs["labels"][:, :5] = -100  # a prompt; positions 4 to 7 predict the targets 5 to 8
    model = moved(divergence_tokens="target")
    loss = model(**inputs).loss
    with model.explicit_divergence() as terms:
        output = model(**inputs)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 4:8] = True
    total, count = terms.total(mask)
    assert count == 8
    torch.testing.assert_close(loss, output.loss + total / count)
    everywhere = moved()(**inputs).loss
    assert (everywhere - loss).abs() > 1e-3


def only_divergence(model):
    """Gradients of the divergence alone."""
    inputs = batch()
    with model.explicit_divergence() as terms:
        model(**inputs)
    total, count = terms.total(token_mask(inputs))
    (total / count).backward()
    return gradients(model)


def test_detaching_stops_the_gradient_at_the_frozen_branch():
    """Undetached, block 3's divergence reaches block 1 through both of its branches."""
    free, detached = only_divergence(moved()), only_divergence(moved(detach_pretrained=True))
    last = {n for n in free if "layers.3.expanded" in n}
    earlier = {n for n in free if "layers.1.expanded" in n}
    assert last and earlier
    assert_same({n: detached[n] for n in last}, {n: free[n] for n in last})
    assert differ({n: detached[n] for n in earlier}, {n: free[n] for n in earlier})


def test_dynamic_weight_multiplies_by_alpha():
    constant = only_divergence(moved(alpha=0.25))
    dynamic = only_divergence(moved(alpha=0.25, divergence_weight="dynamic"))
    assert_same(dynamic, {n: 0.25 * g for n, g in constant.items()})


def test_dynamic_weight_of_a_token_gate_trains_the_gate():
    found = only_divergence(moved(interpolator="dlerp", divergence_weight="dynamic"))
    gate = [n for n in found if n.endswith("interpolator.weight")]
    assert len(gate) == 2
    assert all(found[n].abs().max() > 0 for n in gate)


@pytest.mark.parametrize("interpolator", ["dlerp", "dlerpin", "moe"])
def test_gates_receive_the_tasks_gradient(interpolator):
    found = loss_gradients(moved(interpolator=interpolator, divergence="none"))
    gates = [g for n, g in found.items() if "interpolator" in n]
    assert len(gates) == 4
    assert all(g.abs().max() > 0 for g in gates)


def test_relaxed_norm_of_weight_zero_changes_nothing():
    assert_same(loss_gradients(moved(relaxed_norm=0.0)), loss_gradients(moved()))


def test_relaxed_norm_by_hand():
    model = moved(relaxed_norm=0.25)
    norm = model.blocks[1].expanded.input_layernorm
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    plain = make_base("llama").model.layers[1].input_layernorm
    plain.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), 0.25 * x + 0.75 * plain(x))
    untouched = model.blocks[1].pretrained.input_layernorm
    torch.testing.assert_close(untouched(x), make_base("llama").model.layers[1].input_layernorm(x))


@pytest.mark.parametrize("alpha, weight", [(0.5, 0.0), (0.75, 0.5), (0.2, 0.0), (1.0, 1.0)])
def test_dynamic_relaxed_norm_follows_alpha(alpha, weight):
    model = moved(relaxed_norm="dynamic")
    model.set_alpha(alpha)
    fixed = moved(relaxed_norm=weight)
    fixed.set_alpha(alpha)
    torch.testing.assert_close(model(**batch()).logits, fixed(**batch()).logits)


def test_unfrozen_groups_train_and_the_others_do_not():
    model = moved(freeze=["blocks", "head"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "expanded" not in n}
    assert trained == {"base.model.embed_tokens.weight", "base.model.norm.weight"}
    groups = model.trainable_parameter_groups()
    assert {n for n, _ in groups["base"]} == trained
    assert trained <= loss_gradients(model).keys()


def test_parameter_groups_hold_every_trained_tensor_once():
    model = moved(interpolator="dlerp", expand_ends=True)
    groups = model.trainable_parameter_groups()
    names = [n for group in groups.values() for n, _ in group]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert groups["base"] == []
    assert len(groups["interpolator"]) == 4


def test_a_step_leaves_the_divergence_readable():
    model = moved()
    assert model.divergence == {}
    own_loss_gradients(model)
    assert model.divergence.keys() == {1, 3}
    assert all(value > 0 for value in model.divergence.values())


def test_bfloat16_trains_like_float32():
    full, half = moved(), moved().to(torch.bfloat16)
    ours, theirs = loss_gradients(half), loss_gradients(full)
    cosines = [
        torch.cosine_similarity(ours[n].float().flatten(), theirs[n].flatten(), dim=0)
        for n in theirs
        if theirs[n].numel() > 64
    ]
    assert min(cosines) > 0.97


def test_autocast_computes_the_divergence_in_float32():
    model = moved(divergence="cosine")
    with torch.autocast("cpu", torch.bfloat16), model.explicit_divergence() as terms:
        model(**batch())
    assert {d.dtype for d in terms.values.values()} == {torch.float32}
