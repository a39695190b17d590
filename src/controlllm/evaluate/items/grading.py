"""Items whose answers are programs: run behind walls, read strictly and leniently, pass@k."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from controlllm.evaluate.code import (
    CodeRunner,
    Program,
    human_eval,
    mbpp,
    mean_pass_at_k,
)
from controlllm.evaluate.items.records import Asked, Item
from controlllm.evaluate.items.running import Graded, Grader
from controlllm.evaluate.items.tasks import LoadedBenchmark

__all__ = ["code_grader"]

READINGS = ("strict", "lenient")


def code_grader(runner: CodeRunner, pass_at: Sequence[int] = (1,)) -> Grader:
    """What grades items of kind "code".

    Strict and lenient are the shares of an item's samples that pass, which is the unbiased estimate
    of pass@1; pass@k for other k is written to the evaluation's scores.

    Args:
        runner: runs programs; see `controlllm.evaluate.code.code_runner`.
        pass_at: the k, each at most the number of samples.
    """

    def grade(
        asked: Asked, loaded: LoadedBenchmark, results: Mapping[str, Any], items: Sequence[Item]
    ) -> Graded:
        texts = {
            (name, row["doc_id"]): [str(text) for text in row["resps"][0]]
            for name in loaded.tasks
            for row in results["samples"][name]
        }
        docs = {
            (name, row["doc_id"]): row["doc"]
            for name in loaded.tasks
            for row in results["samples"][name]
        }
        passed = {reading: _passed(runner, items, docs, texts, reading) for reading in READINGS}
        graded = []
        for item in items:
            key = (item.task, item.doc)
            strict, lenient = (sum(passed[one][key]) / len(passed[one][key]) for one in READINGS)
            first = _program(docs[key], texts[key][0], "strict").in_format
            graded.append(replace(item, strict=strict, lenient=lenient, in_format=first))
        return graded, [
            {
                "task": asked.name,
                "metric": f"pass@{k},{reading}",
                "value": mean_pass_at_k([(len(one), sum(one)) for one in counts.values()], k),
            }
            for reading, counts in passed.items()
            for k in pass_at
        ]

    return grade


def _passed(
    runner: CodeRunner,
    items: Sequence[Item],
    docs: Mapping[tuple[str, int], Mapping[str, Any]],
    texts: Mapping[tuple[str, int], Sequence[str]],
    reading: Any,
) -> dict[tuple[str, int], list[bool]]:
    """Which samples of each item pass its tests."""
    keys = [(item.task, item.doc) for item in items]
    programs = [_program(docs[key], text, reading) for key in keys for text in texts[key]]
    outcomes = iter(runner(programs))
    return {key: [next(outcomes).passed for _ in texts[key]] for key in keys}


def _program(doc: Mapping[str, Any], text: str, reading: Any) -> Program:
    return (human_eval if "entry_point" in doc else mbpp)(doc, text, reading)
