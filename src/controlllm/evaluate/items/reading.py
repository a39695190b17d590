"""Items out of lm-eval's samples: four readings of each, from one run."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.registry import check_choice
from controlllm.evaluate.items.asking import AnswerBook
from controlllm.evaluate.items.metrics import EXTRACT
from controlllm.evaluate.items.records import Asked, Item
from controlllm.evaluate.items.store import Answer, Request
from controlllm.evaluate.items.tasks import (
    LoadedBenchmark,
    cluster_of,
    likelihood,
    number,
    text_request,
)
from controlllm.evaluate.texts import EXTRACTORS

__all__ = ["read_items"]

Extra = tuple[Request | None, Request | None]
"""What is asked besides: the likelihood of the right answer, a letter to be written."""
LONGEST_QUESTION, LONGEST_ANSWER = 2_000, 8_000
"""Characters of a text in an item; the end of a question counts, and both ends of an answer."""
LETTERS = "ABCDEFGHIJ"
WRITE_A_LETTER = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
MARKER = "####"
"""Before the answer, for the extractor `after_marker`."""
INVALID = "[invalid]"
"""What lm-eval's filters give where they find no answer."""


def read_items(
    asked: Asked, benchmark: LoadedBenchmark, results: Mapping[str, Any], book: AnswerBook
) -> list[Item]:
    """One item per document, with what the model was asked besides. Collective.

    Besides lm-eval's requests the model is asked for the likelihood of the right answer of written
    tasks, and to write where the choices are letters; so each benchmark has both readings.
    """
    samples = [
        (name, doc, rows)
        for name in benchmark.tasks
        for doc, rows in _by_document(results["samples"][name])
    ]
    extra: dict[tuple[str, int], Extra] = {}
    for name, doc, rows in samples:
        extra[name, doc] = _extra(benchmark.tasks[name], rows[0], book)
    answers: dict[Request, Answer] = {}
    for place in (0, 1):
        wanted = [one for pair in extra.values() if (one := pair[place]) is not None]
        answers |= dict(zip(wanted, book.answers(wanted), strict=True)) if wanted else {}
    cut = _cut_off(benchmark, samples, book)
    return [
        _item(asked, benchmark.tasks[name], name, doc, rows, extra[name, doc], answers, cut)
        for name, doc, rows in samples
    ]


def _by_document(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[Any]]]:
    """The rows of each document: one for each filter."""
    grouped: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        grouped[row["doc_id"]].append(row)
    yield from grouped.items()


def _extra(task: Any, row: Mapping[str, Any], book: AnswerBook) -> Extra:
    """What is asked besides: the right answer's likelihood, and a letter to be written."""
    arguments = row["arguments"]
    if task.OUTPUT_TYPE == "generate_until":
        gold = _gold_text(task, row)
        delimiter = task.config.target_delimiter or " "
        asked = likelihood(book, arguments[0][0], f"{delimiter}{gold}") if gold else None
        return asked, None
    if task.OUTPUT_TYPE == "multiple_choice" and _letters(task, row["doc"]):
        return None, text_request(book, arguments[0][0], WRITE_A_LETTER)
    return None, None


def _item(
    asked: Asked,
    task: Any,
    name: str,
    doc: int,
    rows: Sequence[Mapping[str, Any]],
    extra: Extra,
    answers: Mapping[Request, Answer],
    cut: Mapping[tuple[str, int], bool],
) -> Item:
    row = rows[0]
    read: dict[str, Any] = {}
    if task.OUTPUT_TYPE == "multiple_choice":
        read = _of_choices(asked, task, rows, extra, answers)
    elif task.OUTPUT_TYPE == "generate_until":
        read = _of_text(asked, rows, _gold_text(task, row))
        if (request := extra[0]) is not None:
            read["bits_per_byte"] = _bits(number(answers[request]), request.continuation)
        read["cut_off"] = cut.get((name, doc))
    elif task.OUTPUT_TYPE == "loglikelihood":
        (ll, greedy), gold = row["resps"][0][0], row["arguments"][0][1]
        read = {"bits_per_byte": _bits(float(ll), gold), "gold": gold}
        if "acc" in row["metrics"]:  # The last word of a text, not the whole of one.
            read["choice"] = float(greedy)
    else:
        text = row["arguments"][0][0]
        read = {"bits_per_byte": _bits(float(row["resps"][0][0]), text), "gold": ""}
    everything = json.dumps([row["arguments"], rows[0]["target"]], sort_keys=True, default=str)
    question = task.doc_to_text(row["doc"])
    if not isinstance(question, str):
        question = str(row["arguments"][0][0])
    document = row["doc"] if isinstance(row["doc"], Mapping) else {}
    return Item(
        benchmark=asked.name,
        task=name,
        doc=doc,
        prompt=hashlib.sha256(everything.encode()).hexdigest()[:16],
        question=question[-LONGEST_QUESTION:],
        cluster=cluster_of(document),
        **read,
    )


def _of_choices(
    asked: Asked,
    task: Any,
    rows: Sequence[Mapping[str, Any]],
    extra: Extra,
    answers: Mapping[Request, Answer],
) -> dict[str, Any]:
    row = rows[0]
    choices = [str(choice) for choice in task.doc_to_choice(row["doc"])]
    lls = [float(resps[0][0]) for resps in row["resps"][: len(choices)]]
    gold = task.doc_to_text(row["doc"]) if task.multiple_input else row["target"]
    right = list(gold) if isinstance(gold, list) else [gold]
    right = [
        choices.index(one) if isinstance(one, str) and one in choices else one for one in right
    ]
    right = [one for one in right if isinstance(one, int) and 0 <= one < len(choices)]
    metric = asked.choice or "acc,none"
    # As lm-eval takes the likeliest: for acc_norm by character, for acc_bytes by byte.
    sizes = {"acc_norm": map(len, choices), "acc_bytes": (len(x.encode()) for x in choices)}
    by_size = sizes.get(metric.partition(",")[0], (1 for _ in choices))
    weights = [ll / max(1, size) for ll, size in zip(lls, by_size, strict=True)]
    read: dict[str, Any] = {
        "gold": " | ".join(choices[one] for one in right),
        "answer": choices[max(range(len(weights)), key=weights.__getitem__)],
        "choice": _metric(rows, metric),
    }
    if right:
        # What the model reads is the same for all choices, or what it writes is.
        continuation = str(row["arguments"][right[0]][1])
        read["bits_per_byte"] = _bits(lls[right[0]], continuation)
    if (request := extra[1]) is not None and right:
        text = str(answers[request].text)
        plain = text.strip().rstrip(".")
        read["strict"] = float(plain == choices[right[0]])
        read["lenient"] = float(_letter_in(text) == choices[right[0]])
        read["in_format"] = plain in choices
        read["cut_off"] = answers[request].cut_off
        read["answer"] = _short(text)
    return read


def _of_text(asked: Asked, rows: Sequence[Mapping[str, Any]], gold: str | None) -> dict[str, Any]:
    texts = [str(text) for text in rows[0]["resps"][0]]
    read: dict[str, Any] = {"gold": gold or "", "answer": _short(texts[0])}
    for reading, name in (("strict", asked.strict), ("lenient", asked.lenient)):
        if name is None:
            continue
        if name.startswith(EXTRACT):
            extract = EXTRACTORS.get(name.removeprefix(EXTRACT))
            right = (gold or "").strip()
            found, wanted = extract(texts[0], MARKER), extract(right, MARKER) or right
            read[reading] = float(found is not None and found == wanted)
            told = found is not None
        else:
            read[reading] = _metric(rows, name)
            told = not _is_invalid(_row_of(rows, name))
        if reading == "strict":
            read["in_format"] = told
    return read


def _cut_off(
    benchmark: LoadedBenchmark, samples: Sequence[tuple[str, int, list[Any]]], book: AnswerBook
) -> dict[tuple[str, int], bool]:
    """Whether the written answer of each document was cut off."""
    texts = {
        (name, doc): text_request(book, *rows[0]["arguments"][0][:2])
        for name, doc, rows in samples
        if benchmark.tasks[name].OUTPUT_TYPE == "generate_until"
    }
    found = book.answers(list(texts.values())) if texts else []
    return {key: bool(answer.cut_off) for key, answer in zip(texts, found, strict=True)}


def _metric(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    row, metric = _row_of(rows, name), name.partition(",")[0]
    if metric not in row:
        check_choice("metric", metric, row["metrics"])
    value = row[metric]
    if not isinstance(value, bool | int | float):
        raise ConfigError(f"metric {name!r} is no number for each document; name another one.")
    if not 0 <= value <= 1:
        raise ConfigError(
            f"metric {name!r} says {value:g} of a document, and a reading is a number from 0 to 1: "
            "name another metric; this one stands among the scores of its task."
        )
    return float(value)


def _row_of(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    which = name.partition(",")[2]
    return next((row for row in rows if which and row["filter"] == which), rows[0])


def _is_invalid(row: Mapping[str, Any]) -> bool:
    found = row["filtered_resps"][0]
    return (found[0] if isinstance(found, list) and found else found) == INVALID


def _gold_text(task: Any, row: Mapping[str, Any]) -> str | None:
    gold = row["target"]
    if isinstance(gold, list):
        gold = gold[0] if gold else None
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        gold = str(gold)
    return gold.strip() if isinstance(gold, str) and gold.strip() else None


def _letters(task: Any, doc: Any) -> bool:
    """Whether the choices are letters, and so stand in the question."""
    if task.multiple_input:
        return False
    choices = [str(choice) for choice in task.doc_to_choice(doc)]
    return len(choices) > 1 and choices == list(LETTERS[: len(choices)])


def _letter_in(text: str) -> str | None:
    return EXTRACTORS.get("letter")(text, MARKER)


def _bits(log_likelihood: float, text: str) -> float:
    """Bits per UTF-8 byte of a text, from its log-likelihood in nats."""
    return -log_likelihood / math.log(2) / max(1, len(text.encode()))


def _short(text: str) -> str:
    if len(text) <= LONGEST_ANSWER:
        return text
    half = LONGEST_ANSWER // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[{left_out:,} characters left out]\n{text[-half:]}"
