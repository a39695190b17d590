"""Evaluations by numbers, for tests of what is said of them."""

from controlllm.evaluate import Asked, Evaluation, Item, Subject

MATHS = Asked("gsm8k", ("gsm8k_cot",), "generate", strict="exact_match,strict-match")
ARC = Asked("arc_easy", ("arc_easy",), "choice", chance=0.25)


def item(benchmark, doc, **more):
    """One item; its prompt is the document's number."""
    told = {"question": f"question {doc}?", "gold": str(doc), "answer": "an answer"} | more
    return Item(benchmark, benchmark, doc, f"{doc:016x}", **told)


def rights(base, tuned, n=300, name="gsm8k", reading="strict", **more):
    """Items of base and tuned model: the first so many are right in each."""
    return tuple(
        tuple(item(name, doc, **{reading: float(doc < right)}, **more) for doc in range(n))
        for right in (base, tuned)
    )


def evaluation(*benchmarks, asked=(MATHS,), suite="s", label="tuned", **more):
    """An evaluation of pairs of items, one pair a benchmark."""
    models = (
        Subject("base", "a/base", identity={"weights": "b"}),
        Subject(label, "a/run", identity={"weights": "t"}),
    )
    sides = [tuple(one for pair in benchmarks for one in pair[side]) for side in (0, 1)]
    return Evaluation(suite, asked, models, dict(zip(("base", label), sides, strict=True)), **more)
