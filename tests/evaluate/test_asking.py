"""Suites on models: the harness's own values, kept answers, the same questions for everybody."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluate.samples import write_generation_task, write_repetition_task, write_task
from tests.processes import run_ranks, values

from controlllm import expand, expand_beside
from controlllm.common.distributed import Ranks
from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate import (
    AnswerStore,
    Evaluation,
    Reference,
    compare_models,
    evaluate_suite,
    find_tasks,
    load_benchmark,
    readings_table,
    scores_table,
    targets_of,
    usual_asked,
)
from controlllm.evaluate.items.identity import base_identity, model_identity
from controlllm.evaluate.items.store import Answer, Request

pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")

LETTERS = """
task: lettered
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nA. one\\nB. two\\nAnswer:"
doc_to_choice: ["A", "B"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GROUP = """
group: both
task: [lettered, repeat]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with four small tasks and a group."""
    folder = tmp_path_factory.mktemp("tasks")
    write_repetition_task(folder)
    write_generation_task(folder)
    rows = [{"question": f"q{n} {'a' * (n % 9)}?", "answer": n % 2} for n in range(30)]
    (folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = LETTERS.format(file=folder / "letters.jsonl", cache=folder / "cache")
    (folder / "lettered.yaml").write_text(text)
    (folder / "both.yaml").write_text(GROUP)
    return folder


def loaded(tasks, *names, **options):
    """Benchmarks of single tasks, as `eval --tasks` has them."""
    manager = find_tasks(names, [tasks])
    pairs = [(name, load_benchmark(name, (name,), manager, **options)) for name in names]
    return [(usual_asked(name, one), one) for name, one in pairs]


@pytest.fixture
def ask(tasks, tmp_path, pico_tokenizer):
    """Ask a model, and its base if there is one, with a store for this test."""

    def run(model, *names, base=None, store="store", alphas=(), collapsed=False, **options):
        reference = Reference(model, copy=base) if base is not None else None
        targets = targets_of(
            model,
            pico_tokenizer,
            "a model",
            reference=reference,
            alphas=alphas,
            collapsed=collapsed,
            batch_size=2,
        )
        ranks = options.pop("ranks", Ranks())
        return evaluate_suite(
            "s",
            loaded(tasks, *names, **options),
            targets,
            store=tmp_path / store,
            ranks=ranks,
        )

    return run


def lines(folder: Path) -> list[str]:
    return [
        line for path in folder.glob("*/answers.jsonl") for line in path.read_text().splitlines()
    ]


def test_scores_are_the_harness_s_own(ask, tasks, pico_llama, pico_tokenizer):
    """Choices, written answers and a group's mean, against a run of lm-eval itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = pico_llama(seed=1)
    found = ask(model, "both", "continue")
    harness = HFLM(pretrained=model.eval(), tokenizer=pico_tokenizer, batch_size=1)
    manager = TaskManager(include_path=[str(tasks)], include_defaults=False)
    own = simple_evaluate(
        harness, tasks=["both", "continue"], task_manager=manager, bootstrap_iters=0
    )
    ours = {(row["task"], row["metric"]): row["value"] for row in found.scores}
    assert {task for task, _ in ours} == {"both", "lettered", "repeat", "continue"}
    for (task, metric), value in ours.items():
        key = metric if "," in metric else f"{metric},none"
        assert value == pytest.approx(own["results"][task][key], abs=1e-9), (task, metric)
    for item in found.of("model", "both"):
        (row,) = (r for r in own["samples"][item.task] if r["doc_id"] == item.doc)
        assert item.choice == row["acc"]
        likelihoods = [resps[0][0] for resps in row["resps"]]
        gold = row["arguments"][row["target"]][1]
        bits = -likelihoods[row["target"]] / np.log(2) / len(gold.encode())
        assert item.bits_per_byte == pytest.approx(bits, rel=1e-4)


def test_base_and_model_are_paired(ask, pico_llama, tmp_path):
    from scipy import stats

    model, base = pico_llama(seed=1).train(), pico_llama(seed=0)
    found = ask(model, "lettered", base=base)
    (change,) = compare_models(found, "tuned")
    before, after = ([i.bits_per_byte for i in found.items[label]] for label in ("base", "tuned"))
    interval = stats.ttest_rel(after, before).confidence_interval()
    ours = change.readings["bits_per_byte"].difference.interval()
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert model.training
    assert "bits per byte" in readings_table(found) and "| lettered | acc" in scores_table(found)
    found.save(tmp_path / "saved")
    assert Evaluation.load(tmp_path / "saved") == found


def test_letters_are_written_as_well_as_compared(ask, pico_llama):
    found = ask(pico_llama(seed=1), "lettered").items["model"]
    for item in found:
        plain = item.answer.strip().rstrip(".")
        assert item.in_format == (plain in ("A", "B"))
        assert item.strict == float(plain == item.gold)
        assert item.strict <= item.lenient or item.in_format


def test_what_was_asked_is_not_asked_again(ask, pico_llama, tmp_path):
    base = pico_llama(seed=0)
    first = ask(base, "repeat", "continue")
    before = lines(tmp_path / "store")
    again = ask(pico_llama(seed=0), "repeat", "continue")
    assert again.items == first.items and again.models[0].seconds == 0
    # The base of another model is this base: one run after another shares its answers.
    other = ask(pico_llama(seed=1), "repeat", "continue", base=base)
    assert other.items["base"] == first.items["model"] and other.models[0].seconds == 0
    assert set(lines(tmp_path / "store")) > set(before)
    assert len(lines(tmp_path / "store")) == 2 * len(before)


def test_an_interrupted_store_goes_on_and_nothing_is_doubled(ask, pico_llama, tmp_path):
    straight = ask(pico_llama(seed=1), "repeat", "continue", store="straight")
    whole = lines(tmp_path / "straight")
    (path,) = (tmp_path / "straight").glob("*/answers.jsonl")
    for kept in (0, 3, len(whole) // 2, len(whole) - 1):
        folder = tmp_path / f"kill-{kept}" / path.parent.name
        folder.mkdir(parents=True)
        torn = "".join(f"{line}\n" for line in whole[:kept]) + whole[kept][:20]
        (folder / "answers.jsonl").write_text(torn)
        resumed = ask(pico_llama(seed=1), "repeat", "continue", store=f"kill-{kept}")
        assert resumed.items == straight.items
        text = (folder / "answers.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in text if line != whole[kept][:20]]
        assert len({row["request"] for row in found}) >= len(whole)
        assert {row["request"]: row["answer"] for row in found} == {
            row["request"]: row["answer"] for row in map(json.loads, whole)
        }


def test_damaged_answers_are_asked_anew(ask, pico_llama, tmp_path, caplog):
    straight = ask(pico_llama(seed=1), "repeat")
    (path,) = (tmp_path / "store").glob("*/answers.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["answer"]["log_likelihood"] = "-1.0"
    rows[1]["answer"] = {"text": 5}
    rows[2]["answer"]["log_likelihood"] = float("nan")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[[[[\n")
    assert ask(pico_llama(seed=1), "repeat").items == straight.items
    assert "4 lines are damaged" in caplog.text


def test_two_processes_give_the_same_numbers(ask, pico_llama, tmp_path):
    straight = ask(pico_llama(seed=1), "lettered", "continue", store="one")

    def together(rank: int):
        ranks = Ranks.current(30)
        return ask(pico_llama(seed=1), "lettered", "continue", store="two", ranks=ranks).items

    for items in values(run_ranks(together, 2, tmp_path / "ranks")):
        assert items == straight.items
    assert sorted(lines(tmp_path / "one")) == sorted(lines(tmp_path / "two"))


def test_examples_do_not_depend_on_what_else_is_asked(ask, pico_llama):
    """Of lm-eval a document has other examples if fewer documents come before it."""
    model = pico_llama(seed=1)
    all_, few, drawn = (
        {item.doc: item for item in ask(model, "lettered", shots=2, seed=3, **more).items["model"]}
        for more in ({}, {"limit": 4}, {"sample": 7})
    )
    assert len(few) == 4 and len(drawn) == 7 and few.keys() != drawn.keys()
    for some in (few, drawn):
        assert all(all_[doc] == item for doc, item in some.items())
    other = ask(model, "lettered", shots=2, seed=4, limit=4).items["model"]
    assert [item.prompt for item in other] != [item.prompt for item in few.values()]


def test_a_sample_takes_of_each_task_its_share(tasks):
    ((_, both),) = loaded(tasks, "both", sample=10)
    counts = {name: len(task.eval_docs) for name, task in both.tasks.items()}
    assert both.num_docs() == 10
    for name, numbers in both.drawn.items():
        assert len(set(numbers)) == len(numbers)
        assert abs(len(numbers) - 10 * counts[name] / sum(counts.values())) <= 1
    with pytest.raises(ConfigError, match="sample=1 is less than its 2 tasks"):
        loaded(tasks, "both", sample=1)


def test_along_the_dial(ask, pico_llama, tmp_path):
    from controlllm import ExpansionConfig, expand

    model = expand(pico_llama(seed=0), ExpansionConfig(num_blocks=1))
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) if parameter.requires_grad else 0)
    model.set_alpha(0.7)
    found = ask(model, "lettered", alphas=[0.0, 0.3, 0.30000001, 0.7, 1.0], collapsed=True)
    labels = [one.label for one in found.models]
    assert labels == ["base", "tuned", "alpha 0.3", "alpha 1", "collapsed"]
    assert found.items["base"] == ask(pico_llama(seed=0), "lettered").items["model"]
    assert len({found.items[label] for label in labels}) == 5
    assert model.expansion.dial == 0.7
    assert len([*(tmp_path / "store").iterdir()]) == 5  # The base of its own was known.


def test_nothing_of_the_caller_is_changed(ask, pico_llama, pico_tokenizer):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    side = pico_tokenizer.padding_side
    ask(pico_llama(), "repeat", "continue", limit=2)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert pico_tokenizer.padding_side == side


def test_whose_answers_they_are(pico_llama, pico_tokenizer):
    model, same, other = pico_llama(seed=0), pico_llama(seed=0), pico_llama(seed=1)
    known = model_identity(model, pico_tokenizer)
    assert model_identity(same, pico_tokenizer) == known == base_identity(same, pico_tokenizer)
    assert model_identity(other, pico_tokenizer) != known
    with torch.no_grad():
        weight = same.model.layers[0].mlp.up_proj.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert model_identity(same, pico_tokenizer) != known
    assert model_identity(model.to(torch.bfloat16), pico_tokenizer) != known


def test_wrong_settings_are_told_before_anything_is_asked(ask, tasks, pico_llama):
    with pytest.raises(ConfigError, match="Did you mean 'repeat'"):
        find_tasks(["repeet"], [tasks])
    with pytest.raises(ConfigError, match="absent' is not a folder"):
        find_tasks(["repeat"], [tasks / "absent"])
    ((asked, one),) = loaded(tasks, "repeat")
    asked = replace(asked, choice="acc_nrom,none")
    with pytest.raises(ConfigError, match="Did you mean 'acc_norm'"):
        evaluate_suite("s", [(asked, one)], [], store="unused")
    with pytest.raises(ConfigError, match="is not expanded"):
        ask(pico_llama(), "repeat", alphas=[0.5])


def test_a_kind_that_a_task_is_not(tasks):
    ((asked, one),) = loaded(tasks, "repeat")
    for kind in ("code", "likelihood", "generate"):
        with pytest.raises(ConfigError, match="asks for multiple_choice; write kind: choice"):
            evaluate_suite("s", [(replace(asked, kind=kind), one)], [], store="unused")


def test_two_evaluations_at_once_write_each_answer_once(ask, pico_llama, tmp_path):
    """Both have read an empty store before either asks."""
    store = tmp_path / "store"
    both = [AnswerStore(store, {"weights": "x"}) for _ in range(2)]
    request, other = Request("text", "a"), Request("text", "b")
    both[0].add([(request, Answer(text="1", cut_off=False))])
    both[1].add([(request, Answer(text="2", cut_off=False)), (other, Answer(text="3"))])
    assert len(lines(store)) == 2
    assert both[1].get(request).text == "1"  # The one that everybody reads.


def test_documents_that_cannot_be_loaded(tmp_path):
    write_task(tmp_path, "absent", tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"absent.*below data_dir"):
        loaded(tmp_path, "absent")


def test_a_model_that_gives_no_numbers_is_told(ask, pico_llama):
    model = pico_llama(seed=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"log-likelihood of .* is nan"):
        ask(model, "repeat")


def test_answers_that_do_not_fit_into_the_model(ask, pico_llama):
    with pytest.raises(ConfigError, match=r"--max_new_tokens"):
        ask(pico_llama(), "continue", settings={"max_gen_toks": 100_000})


def test_answers_longer_than_the_model_reads_are_scored_in_pieces(
    ask, pico_llama, pico_tokenizer, tasks, tmp_path
):
    """By hand: each token after as many before it as its window has, 16 at a time."""
    rows = [{"query": "a b", "choices": ["x" * 40, "#"], "gold": 0}]
    (tmp_path / "long.jsonl").write_text(json.dumps(rows[0]))
    write_task(tasks, "long", tmp_path / "long.jsonl")
    model = pico_llama(seed=1).eval()
    whole = ask(model, "long", store="whole").items["model"][0]
    model.config.max_position_embeddings = 16
    pieces = ask(model, "long", store="pieces").items["model"][0]
    tokens = pico_tokenizer(" " + "x" * 40, add_special_tokens=False)["input_ids"]
    before = pico_tokenizer("a b\nAnswer:", add_special_tokens=False)["input_ids"][-1:]
    total = 0.0
    for begin in range(0, len(tokens), 16):
        piece = tokens[begin : begin + 16]
        read = ([*before, *tokens])[begin : begin + len(piece)]
        if len(piece) < 16 and begin:  # The last window reaches back as far as it can.
            read = ([*before, *tokens])[len(tokens) - 16 : len(tokens)]
        with torch.no_grad():
            logits = model(torch.tensor([read])).logits[0].log_softmax(-1)
        total += sum(logits[len(read) - len(piece) + i, t].item() for i, t in enumerate(piece))
    bits = -total / np.log(2) / len(" " + "x" * 40)
    assert pieces.bits_per_byte == pytest.approx(bits, rel=1e-4)
    assert whole.bits_per_byte != pieces.bits_per_byte


def test_a_perplexity_beyond_all_numbers(ask, tasks, pico_llama, tmp_path):
    """Of lm-eval it is an OverflowError, after everything was asked."""
    (tmp_path / "far.jsonl").write_text(json.dumps({"text": "xyzzy " * 60}))
    (tasks / "far.yaml").write_text(
        "task: far\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'far.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood\n"
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]\n"
    )
    found = ask(pico_llama(seed=1), "far")
    assert found.items["model"][0].bits_per_byte > 4
    found.save(tmp_path / "saved")
    assert Evaluation.load(tmp_path / "saved").items == found.items
    assert "far" in scores_table(found)


def test_questions_about_one_passage_are_one_cluster(ask, tasks, pico_llama, tmp_path):
    rows = [
        {
            "passage": f"p{n // 4}",
            "query": f"a{n} b{n} a{n}",
            "choices": [f" b{n}", " x"],
            "gold": 0,
        }
        for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_task(tasks, "passages", tmp_path / "rows.jsonl")
    found = ask(pico_llama(seed=1), "passages", base=pico_llama(seed=0))
    (change,) = compare_models(found, "tuned")
    difference = change.readings["choice"].difference
    assert (difference.num_items, difference.num_clusters) == (12, 3)


def test_real_questions_on_a_real_model(stories260k, shared_data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_task(tmp_path, "copa_local", shared_data / "eval" / "llm_foundry" / "copa.jsonl")
    model = AutoModelForCausalLM.from_pretrained(stories260k)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    benchmarks = loaded(tmp_path, "copa_local", limit=20)
    targets = targets_of(model, tokenizer, "stories")
    found = evaluate_suite("s", benchmarks, targets, store=tmp_path / "store")
    rate = np.mean([item.choice for item in found.items["model"]])
    for item in found.items["model"]:  # The answer shown is the one that was counted.
        assert item.choice == float(item.answer == item.gold)
    assert len(found.items["model"]) == 20 and 0.2 <= rate <= 0.9


def test_alpha_0_of_a_sidecar_beside_others_is_the_model_before_it(pico_llama, pico_tokenizer):
    alone = expand(pico_llama(), num_blocks=2)
    asked = [one.subject.label for one in targets_of(alone, pico_tokenizer, "m", alphas=(0, 0.4))]
    assert asked == ["base", "tuned", "alpha 0.4"]
    branched = expand_beside(alone, "b", earlier="a", num_blocks=2)
    named = {t.subject.label: t for t in targets_of(branched, pico_tokenizer, "m", alphas=(0, 0.4))}
    assert [*named] == ["base", "tuned", "alpha 0", "alpha 0.4"]
    identities = [one.subject.identity for one in named.values()]
    assert all(one not in identities[:n] for n, one in enumerate(identities))
