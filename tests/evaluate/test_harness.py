import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluate.samples import write_repetition_task, write_task

from controlllm.common.errors import ConfigError
from controlllm.evaluate import HarnessConfig, Reference, run_tasks

pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with the task `repeat`."""
    folder = tmp_path_factory.mktemp("tasks")
    write_repetition_task(folder)
    return folder


def test_base_and_trained_side_by_side_offline(pico_llama, pico_tokenizer, tasks, tmp_path):
    model, base = pico_llama(seed=1).train(), pico_llama(seed=0)
    config = HarnessConfig(tasks=["repeat"], include_path=[tasks], limit=3)
    report = run_tasks(model, pico_tokenizer, config, Reference(model, copy=base))
    accuracy = next(score for score in report.scores if score.metric == "acc")
    assert (accuracy.task, accuracy.samples, accuracy.higher_is_better) == ("repeat", 3, True)
    assert 0 <= accuracy.value <= 1 and accuracy.base is not None
    alone = run_tasks(base, pico_tokenizer, config)
    assert alone.scores[0].value == accuracy.base and alone.scores[0].base is None
    assert "| repeat | acc ↑" in report.table()
    report.save(tmp_path / "tasks.json")
    saved = json.loads((tmp_path / "tasks.json").read_text())
    assert saved["scores"][0]["difference"] == accuracy.difference
    assert model.training


def test_nothing_of_the_caller_is_changed(pico_llama, pico_tokenizer, tasks):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    side = pico_tokenizer.padding_side
    config = HarnessConfig(tasks=["repeat"], include_path=[tasks], limit=1)
    run_tasks(pico_llama(), pico_tokenizer, config)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert pico_tokenizer.padding_side == side


def test_wrong_settings_are_named(pico_llama, pico_tokenizer, tasks, tmp_path):
    with pytest.raises(ConfigError, match="tasks is empty"):
        HarnessConfig(tasks=[])
    with pytest.raises(ConfigError, match="absent' is not a folder"):
        HarnessConfig(tasks=["repeat"], include_path=[tmp_path / "absent"])
    config = HarnessConfig(["repeat"], include_path=[tasks], apply_chat_template=True)
    with pytest.raises(ConfigError, match="has no chat template"):
        run_tasks(pico_llama(), pico_tokenizer, config)


@pytest.mark.slow
def test_an_unknown_task_gets_the_nearest_name(pico_llama, pico_tokenizer, tasks):
    with pytest.raises(ConfigError, match="Did you mean 'repeat'"):
        run_tasks(pico_llama(), pico_tokenizer, HarnessConfig(["repeet"], include_path=[tasks]))


def test_real_questions_on_a_real_model(stories260k, shared_data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_task(tmp_path, "copa_local", shared_data / "eval" / "llm_foundry" / "copa.jsonl")
    model = AutoModelForCausalLM.from_pretrained(stories260k)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    config = HarnessConfig(["copa_local"], include_path=[tmp_path], limit=20)
    report = run_tasks(model, tokenizer, config)
    accuracy = {score.metric: score for score in report.scores}["acc"]
    assert accuracy.samples == 20 and 0.2 <= accuracy.value <= 0.9


def test_differences_pair_the_documents(stories260k, shared_data, tmp_path):
    """Against right and wrong of each document, read off two runs of lm-eval itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from scipy import stats
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_task(tmp_path, "copa_local", shared_data / "eval" / "llm_foundry" / "copa.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    base, model = (AutoModelForCausalLM.from_pretrained(stories260k) for _ in range(2))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0)
    config = HarnessConfig(["copa_local"], include_path=[tmp_path], limit=40)
    report = run_tasks(model, tokenizer, config, Reference(model, copy=base))
    score = {score.metric: score for score in report.scores}["acc"]

    def right(which: torch.nn.Module) -> np.ndarray:
        manager = TaskManager(include_path=[str(tmp_path)], include_defaults=False)
        harness = HFLM(pretrained=which, tokenizer=tokenizer, batch_size=1)
        found = simple_evaluate(
            harness, tasks=["copa_local"], limit=40, task_manager=manager, bootstrap_iters=0
        )
        samples = sorted(found["samples"]["copa_local"], key=lambda sample: sample["doc_id"])
        return np.asarray([sample["acc"] for sample in samples])

    before, after = right(base), right(model)
    assert (before != after).any()
    interval = stats.ttest_rel(after, before).confidence_interval()
    assert score.difference == pytest.approx((after - before).mean())
    assert score.stderr == pytest.approx(after.std(ddof=1) / len(after) ** 0.5)
    assert (score.interval.low, score.interval.high) == pytest.approx((interval.low, interval.high))
    lost, won = (before > after).sum(), (after > before).sum()
    assert score.p_value == pytest.approx(stats.binomtest(lost, lost + won).pvalue)
    assert f"{interval.low:+.4f} to {interval.high:+.4f}" in report.table()


def test_questions_about_one_passage_are_one_cluster(pico_llama, pico_tokenizer, tmp_path):
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
    write_task(tmp_path, "passages", tmp_path / "rows.jsonl")
    model, base = pico_llama(seed=1), pico_llama(seed=0)
    config = HarnessConfig(["passages"], include_path=[tmp_path])
    report = run_tasks(model, pico_tokenizer, config, Reference(model, copy=base))
    score = {score.metric: score for score in report.scores}["acc"]
    assert (score.paired.num_items, score.paired.num_clusters) == (12, 3)
