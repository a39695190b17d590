"""Numbers from texts: hand-worked values, what identical and empty texts give, and nonsense."""

import math
from functools import partial
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlllm.common.errors import ConfigError
from controlllm.evaluate.texts import EXTRACTORS, METRICS, check_metrics, register_metric
from controlllm.evaluate.texts import score_texts as score
from controlllm.evaluate.texts.metrics import is_mostly_cjk

ENGLISH = ["the cat sat on the mat", "It costs $1,200.50, he said.\nShe paid at once."]
CHINESE = ["小明有三个苹果。", "北京是中国的首都，人口很多。"]
WHOLE = {"extract": EXTRACTORS.get("whole")}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_things", dict(METRICS._things))


def test_rouge_by_hand():
    found = score(["rouge"], ["the cat sat"], ["the cat ran fast"])
    # Two of three and of four words; one of two and of three pairs of words.
    assert found["rouge1"] == found["rougeL"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["rouge2"] == pytest.approx(2 * 1 / (2 + 3))
    lines = score(["rouge"], ["a b\nc d"], ["c d\na b"])
    assert lines["rougeL"] == pytest.approx(2 / 4) and lines["rougeLsum"] == 1.0  # line by line


def test_chinese_rouge_counts_characters():
    found = score(["rouge"], ["我爱北京"], ["我爱上海"])
    assert found["rouge1"] == pytest.approx(2 / 4) and found["rouge2"] == pytest.approx(1 / 3)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_words_of_ascii_are_those_of_rouge_score(text: str) -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    from controlllm.evaluate.texts.metrics import _Words

    assert _Words().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


def test_bleu_by_hand():
    # One word more than the reference: precisions 6/7, 5/6, 4/5, 3/4, and no brevity penalty.
    found = score(["bleu"], ["the cat sat on the mat today"], ["the cat sat on the mat"])
    assert found["bleu"] == pytest.approx(100 * (3 / 7) ** 0.25)
    # One less: all of its words are right; exp(1 - 6/5) for being short.
    found = score(["bleu"], ["the cat sat on the"], ["the cat sat on the mat"])
    assert found["bleu"] == pytest.approx(100 * math.exp(-1 / 5))


def test_chinese_bleu_counts_characters():
    # Seven of eight characters, then 6/7, 5/6, 4/5 of their sequences: the last one is wrong.
    found = score(["bleu"], ["小明有三个苹果树"], ["小明有三个苹果酱"])
    assert found["bleu"] == pytest.approx(100 * (7 / 8 * 6 / 7 * 5 / 6 * 4 / 5) ** 0.25)


def test_chrf_by_hand():
    # Characters 3/4, pairs 2/3, triples 1/2, all four 0: precision and recall are their mean.
    assert score(["chrf"], ["abcd"], ["abce"])["chrf"] == pytest.approx(
        100 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4
    )


def test_exact_match_compares_the_answers_inside():
    last = {"extract": partial(EXTRACTORS.get("last_number"), marker="")}
    texts, references = ["so it is $1,200.", "maybe 7", "no idea"], ["#### 1200", "8", "3"]
    assert score(["exact_match"], texts, references, last) == {"exact_match": pytest.approx(1 / 3)}
    assert math.isnan(score(["exact_match"], ["7"], ["red"], last)["exact_match"])


def test_token_accuracy_is_by_token():
    given = {"target_hits": [(3, 4), (0, 1)]}
    assert score(["token_accuracy"], ["", ""], ["a", "b"], given) == {"token_accuracy": 3 / 5}


def test_auc_of_two_labels_counts_pairs_in_order():
    probabilities = [{"a": p, "b": 1 - p} for p in (0.9, 0.4, 0.6, 0.1)]
    found = score(["auc"], [""] * 4, ["a", "a", "b", "b"], {"label_probabilities": probabilities})
    assert found == {"auc": 3 / 4}  # Of 2 x 2 pairs only 0.4 < 0.6 is the wrong way round.


def test_auc_of_many_labels_is_the_mean_of_each_against_the_rest():
    right = ["a", "b", "c", "a", "c", "b"]
    rows = [(0.5, 0.2, 0.3), (0.6, 0.3, 0.1), (0.1, 0.4, 0.5), (0.3, 0.3, 0.4), (0.2, 0.7, 0.1)]
    rows.append((0.1, 0.6, 0.3))
    probabilities = [dict(zip("abc", row, strict=True)) for row in rows]

    def area(label: str) -> float:
        pairs = product(
            [row[label] for row, own in zip(probabilities, right, strict=True) if own == label],
            [row[label] for row, own in zip(probabilities, right, strict=True) if own != label],
        )
        wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]
        return sum(wins) / len(wins)

    found = score(["auc"], [""] * 6, right, {"label_probabilities": probabilities})["auc"]
    assert found == pytest.approx(sum(map(area, "abc")) / 3)


def test_auc_of_one_label_is_nothing():
    found = score(["auc"], [""], ["a"], {"label_probabilities": [{"a": 1.0}]})
    assert math.isnan(found["auc"])


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_identical_texts_have_full_marks_and_empty_ones_none(texts: list[str]) -> None:
    names = ["rouge", "bleu", "chrf", "exact_match"]
    for answers, share in ((texts, 1), ([""] * len(texts), 0)):
        found = score(names, answers, texts, WHOLE)
        full = {"bleu": 100, "chrf": 100}
        assert found == {name: pytest.approx(share * full.get(name, 1)) for name in found}
        assert len(found) == 7


def test_which_tokenizer_bleu_takes():
    assert is_mostly_cjk(CHINESE) and is_mostly_cjk(["これは本です", "OK"])
    assert is_mostly_cjk(["答案是42 kg。"]) and not is_mostly_cjk(["苹果 means apple"])
    assert not is_mostly_cjk(ENGLISH) and not is_mostly_cjk(["123 + 4"]) and not is_mostly_cjk([])


def test_one_of_ones_own():
    def lengths(texts: list[str], references: list[str]) -> dict[str, float]:
        return {"length": sum(map(len, texts)) / sum(map(len, references))}

    register_metric("lengths", lengths, higher_is_better=False)
    assert score(["lengths", "chrf"], ["ab"], ["abcd"])["length"] == 0.5
    with pytest.raises(ConfigError, match=r"registered already"):
        register_metric("lengths", lambda texts, references: {})


@pytest.mark.parametrize(
    "result, message",
    [
        (0.5, "gives a float; let it give a dict"),
        ({"x": "high"}, "gives 'x': 'high'"),
        ({"x": None}, "gives 'x': None"),
        ({"": 1.0}, "gives '': 1.0"),
        ({"bleu": 1.0}, "two of the metrics bleu, own give a number called 'bleu'"),
    ],
)
def test_a_metric_that_gives_nonsense_is_named(result: Any, message: str) -> None:
    register_metric("own", lambda texts, references: result)
    with pytest.raises(ConfigError, match=message):
        score(["bleu", "own"], ["a"], ["b"])


def test_a_metric_that_fails_is_named():
    register_metric("own", lambda texts, references: {"x": 1 / 0})
    with pytest.raises(ConfigError, match=r"'own' fails: ZeroDivisionError"):
        score(["own"], ["a"], ["b"])
    with pytest.raises(ConfigError, match=r"'exact_match' needs extract"):
        score(["exact_match"], ["a"], ["b"])
    with pytest.raises(ConfigError, match=r"needs of the metric 'y'='logits'.*not known"):
        register_metric("y", lambda texts, references: {}, needs=["logits"])
    with pytest.raises(ConfigError, match=r"2 texts .* 1 references"):
        score(["bleu"], ["a", "b"], ["b"])


def test_names_and_packages_are_checked_without_importing_any():
    with pytest.raises(ConfigError, match=r"'rogue' is not known.*Did you mean 'rouge'"):
        check_metrics(["bleu", "rogue"])
    register_metric("own", lambda texts, references: {}, packages={"no_such": "no-such"})
    with pytest.raises(ConfigError, match=r"'own' needs no-such.*pip install no-such"):
        check_metrics(["own"])
    check_metrics(["rouge", "bleu", "chrf", "exact_match", "token_accuracy", "auc"])
