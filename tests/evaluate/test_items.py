"""Items as they lie in a folder, and what is said of two models on the same ones."""

import json
from dataclasses import asdict, replace

import pytest

from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate import (
    Asked,
    Evaluation,
    Item,
    Outcome,
    Subject,
    compare_models,
    numbers_of,
    readings_table,
    scores_table,
)
from controlllm.evaluate.items.reading import _metric

ARC = Asked("arc", ("arc_easy",), "choice", chance=0.25)
MATHS = Asked("maths", ("gsm8k",), "generate", strict="exact_match,strict-match")


def item(doc, benchmark="maths", **readings):
    return Item(benchmark, benchmark, doc, f"{doc:016x}", f"question {doc}?", str(doc), **readings)


def evaluation(base, tuned, asked=MATHS):
    models = (Subject("base", "model"), Subject("tuned", "run", identity={"dtype": "float32"}))
    return Evaluation("s", (asked,), models, {"base": tuple(base), "tuned": tuple(tuned)})


def rates(share, n=400, **more):
    """Items of which a share is right in each reading, spread evenly."""
    return [
        item(doc, **{name: float(doc % 20 < 20 * rate) for name, rate in share.items()}, **more)
        for doc in range(n)
    ]


def outcome(base, tuned, asked=MATHS):
    (change,) = compare_models(evaluation(base, tuned, asked), "tuned")
    return change.outcome


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    items = [item(0, strict=1.0, answer="4\n\u2028雪\x1b[31m", cut_off=False), item(1, cluster="p")]
    one = evaluation(items, items)
    one.save(tmp_path)
    assert Evaluation.load(tmp_path) == one


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[]", "no JSON object"),
        ('{"benchmark": 1}', "wrong type"),
        ('{"benchmark": "b"}', "lacks a field"),
        ('{"__class__": "os"}', "not known"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_damaged_items_are_told_with_their_line(tmp_path, line, told):
    evaluation(rates({"strict": 1}, 2), rates({"strict": 1}, 2)).save(tmp_path)
    with (tmp_path / "items-1.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=told) as error:
        Evaluation.load(tmp_path)
    assert "items-1.jsonl:3" in str(error.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"strict": 1.5}, "strict=1.5 cannot be; allowed: from 0"),
        ({"choice": -1}, "choice=-1 cannot be"),
        ({"bits_per_byte": -0.1}, "bits_per_byte=-0.1 cannot be; allowed: 0 or more"),
        ({"bits_per_byte": float("inf")}, "bits_per_byte=inf is no finite number"),
        ({"bits_per_byte": 10**400}, "bits_per_byte is an integer of 401 digits"),
        ({"doc": 10**400}, "doc is an integer of 401 digits"),
        ({"doc": 1}, r"document 1 of maths \(maths\) again, which line 2 is already"),
        ({"answer": "a" * (4 << 20)}, "is too long: an item has 4,194,304 bytes at most"),
    ],
)
def test_readings_that_cannot_be_are_told_with_their_line(tmp_path, more, told):
    evaluation(rates({"strict": 1}, 2), rates({"strict": 1}, 2)).save(tmp_path)
    with (tmp_path / "items-1.jsonl").open("a") as file:
        file.write(json.dumps({**asdict(item(2)), **more}) + "\n")
    with pytest.raises(DataError, match=told) as error:
        Evaluation.load(tmp_path)
    assert "items-1.jsonl:3" in str(error.value)


def test_the_longest_line_is_read(tmp_path):
    empty = len(json.dumps(asdict(item(0, answer=""))) + "\n")
    one = [item(0, answer="a" * ((4 << 20) - empty))]
    evaluation(one, one).save(tmp_path)
    assert Evaluation.load(tmp_path).items["tuned"] == tuple(one)


def test_scores_that_are_not_finite_are_null(tmp_path):
    score = {"model": "base", "task": "t", "metric": "perplexity", "value": float("inf")}
    one = replace(evaluation([item(0)], [item(0)]), scores=(score,))
    assert numbers_of(one)["scores"][0]["value"] is None
    one.save(tmp_path)
    path = tmp_path / "evaluation.json"
    assert "Infinity" not in path.read_text()
    found = Evaluation.load(tmp_path)
    assert found.scores == (score | {"value": None},)
    assert "| t    | perplexity" in scores_table(found)
    path.write_text(path.read_text().replace('"value": null', '"value": "3"'))
    with pytest.raises(DataError, match=r"evaluation.json: scores: value='3' has a wrong type"):
        Evaluation.load(tmp_path)


def test_a_folder_without_an_evaluation_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="controlllm eval --suite"):
        Evaluation.load(tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps({"suite": "s", "models": {}}))
    with pytest.raises(DataError, match="benchmarks is no list"):
        Evaluation.load(tmp_path)


def test_items_that_do_not_pair_are_refused_with_the_first_difference():
    base = rates({"strict": 1}, 3)
    with pytest.raises(DataError, match="document 2 of maths was asked of one model only"):
        outcome(base, base[:2])
    with pytest.raises(DataError, match="document 2 of maths was asked of one model only"):
        outcome(base[:2], base)
    with pytest.raises(DataError, match="document 1 of maths was asked with other words"):
        outcome(base, [base[0], replace(base[1], prompt="f" * 16), base[2]])
    with pytest.raises(
        DataError, match=r"document 1 of maths has another right answer \('1' and '2'"
    ):
        outcome(base, [base[0], replace(base[1], gold="2"), base[2]])
    with pytest.raises(
        DataError, match=r"document 1 of maths has another cluster \('None' and 'p'"
    ):
        outcome(base, [base[0], replace(base[1], cluster="p"), base[2]])
    for sides in ((base, [*base, base[1]]), ([*base, base[1]], base)):
        with pytest.raises(DataError, match="document 1 of maths is there twice"):
            outcome(*sides)
    with pytest.raises(ConfigError, match="'tuned'"):
        compare_models(evaluation(base, base), "tunde")


def test_the_four_words():
    base = rates({"strict": 0.5, "lenient": 0.6}, bits_per_byte=1.0)
    assert outcome(base, rates({"strict": 0.5, "lenient": 0.6}, bits_per_byte=1.0)) == "kept"
    assert outcome(base, rates({"strict": 0.1, "lenient": 0.6}, bits_per_byte=1.0)) == "format lost"
    lost = rates({"strict": 0.1, "lenient": 0.2}, bits_per_byte=1.0)
    assert outcome(base, lost) == "knowledge lost"
    assert outcome(base, rates({"strict": 0.9, "lenient": 0.9}, bits_per_byte=1.5)) == "gained"


def test_a_reason_says_what_became_worse_and_what_held():
    base = rates({"strict": 0.5, "lenient": 0.6}, bits_per_byte=1.0)
    for share, bits, told in (
        ({"strict": 0.1, "lenient": 0.2}, 1.5, "strict and lenient fell, bits per byte rose"),
        ({"strict": 0.1, "lenient": 0.6}, 1.0, "strict fell, lenient and bits per byte held"),
        ({"strict": 0.5, "lenient": 0.2}, 1.0, "lenient fell"),
    ):
        (change,) = compare_models(evaluation(base, rates(share, bits_per_byte=bits)), "tuned")
        assert change.reason == told


def test_the_word_stands_beside_the_reading_that_decided():
    base = rates({"strict": 0.5, "lenient": 0.6})
    for tuned, decided_by in (
        ({"strict": 0.1, "lenient": 0.6}, "strict"),
        ({"strict": 0.1, "lenient": 0.2}, "strict"),
        ({"strict": 0.5, "lenient": 0.2}, "lenient"),
        ({"strict": 0.5, "lenient": 0.9}, "lenient"),
        ({"strict": 0.5, "lenient": 0.6}, None),
    ):
        one = evaluation(base, rates(tuned))
        (change,) = compare_models(one, "tuned")
        assert change.decided_by == decided_by
        assert numbers_of(one)["changes"][0]["decided_by"] == decided_by
        told = [line for line in readings_table(one).splitlines() if change.reason in line]
        assert [line.split("|")[3].split()[0] for line in told] == [decided_by or "strict"]
        assert change.outcome in told[0]


def test_bits_per_byte_count_where_answers_are_at_chance():
    guessing = [replace(one, bits_per_byte=1.0 + one.doc % 7) for one in rates({"choice": 0.25})]
    worse = [replace(one, bits_per_byte=1.2 * one.bits_per_byte) for one in guessing]
    assert outcome(guessing, worse, ARC_OF_MATHS) == Outcome.KNOWLEDGE_LOST
    assert outcome(worse, guessing, ARC_OF_MATHS) == Outcome.GAINED
    knowing = [replace(one, choice=float(one.doc % 20 < 15)) for one in guessing]
    assert outcome(knowing, [replace(one, bits_per_byte=9.0) for one in knowing]) == Outcome.KEPT


ARC_OF_MATHS = replace(ARC, name="maths")


def test_flipped_items_and_shares():
    base = rates({"strict": 0.5}, 20, in_format=True, cut_off=False)
    tuned = [replace(base[0], strict=0.0, in_format=False, cut_off=True), *base[1:]]
    (change,) = compare_models(evaluation(base, tuned), "tuned")
    assert change.flipped() == ((base[0], tuned[0]),)
    assert change.in_format == (1.0, 0.95) and change.cut_off == (0.0, 0.05)
    assert change.readings["strict"].p_value == 1.0


def test_questions_about_one_passage_count_as_one():
    base = rates({"strict": 0.5})
    apart = [replace(one, strict=float(one.doc % 20 < 11)) for one in base]
    clusters = [replace(one, cluster=str(one.doc // 20 % 2)) for one in base]
    (alone,) = compare_models(evaluation(base, apart), "tuned")
    tuned = [
        replace(one, cluster=other.cluster) for one, other in zip(apart, clusters, strict=True)
    ]
    (together,) = compare_models(evaluation(clusters, tuned), "tuned")
    assert alone.readings["strict"].difference.num_clusters == 400
    assert together.readings["strict"].difference.num_clusters == 2


def test_a_metric_on_another_scale_is_refused_when_it_is_read():
    rows = [{"filter": "none", "metrics": ["bleu"], "bleu": 37.5}]
    with pytest.raises(ConfigError, match=r"'bleu,none' says 37\.5 of a document"):
        _metric(rows, "bleu,none")
    assert _metric([{**rows[0], "bleu": True}], "bleu,none") == 1.0
