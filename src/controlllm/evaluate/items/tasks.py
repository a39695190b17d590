"""Tasks of lm-evaluation-harness made to ask every model the same, whatever was asked before.

The harness loads documents, writes prompts, filters answers and computes its metrics; here are only
the choices that it leaves to chance or to the order of calls: which documents, which examples.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from controlllm.common.errors import ConfigError, DataError
from controlllm.evaluate.items.asking import AnswerBook
from controlllm.evaluate.items.store import Answer, Request
from controlllm.evaluate.suites.quiet_harness import quiet_harness

__all__ = [
    "LoadedBenchmark",
    "ask_harness",
    "cluster_of",
    "likelihood",
    "load_benchmark",
    "number",
    "text_request",
]

SHARED = ("passage", "context", "article", "story")
"""Fields of a document that several questions share: their answers are not independent."""


@dataclass(frozen=True)
class LoadedBenchmark:
    """The tasks of one benchmark, with the documents that are asked.

    Attributes:
        name: the row of the suite.
        loaded: what lm-eval's manager gave: tasks, groups and who belongs to whom.
        drawn: the numbers of the documents by task; None = all.
        chat: whether questions stand behind the model's chat template.
    """

    name: str
    loaded: Mapping[str, Any]
    drawn: Mapping[str, list[int]] | None
    chat: bool

    @property
    def tasks(self) -> Mapping[str, Any]:
        """lm-eval's tasks by name."""
        found: Mapping[str, Any] = self.loaded["tasks"]
        return found

    def num_docs(self) -> int:
        """How many documents are asked."""
        if self.drawn is not None:
            return sum(map(len, self.drawn.values()))
        return sum(len(task.eval_docs) for task in self.tasks.values())


def load_benchmark(
    name: str,
    tasks: Sequence[str],
    manager: Any,
    *,
    shots: int | None = None,
    sample: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    chat: bool = False,
    samples: int = 1,
    settings: Mapping[str, Any] | None = None,
    advice: str = "Put them below data_dir, or let this machine reach the Hub.",
) -> LoadedBenchmark:
    """Load tasks with their documents.

    Args:
        name: the row of the suite, for messages and for the draw.
        tasks: lm-eval's names of tasks, groups or tags.
        manager: lm-eval's `TaskManager` that knows them.
        shots: solved examples before each question; None = as each task says.
        sample: how many documents to draw, from each task in proportion; None = all.
        limit: the first so many documents of each task; None = all.
        seed: of the draw, and of the examples of each document.
        chat: whether questions stand behind the chat template.
        samples: how many answers are written to each question; several need `do_sample` in
            `settings`.
        settings: of written answers, over those of the task (max_gen_toks, temperature, ...).
        advice: what to do where documents cannot be loaded.

    Raises:
        ConfigError: a package is missing, or fewer documents are to be drawn than there are tasks.
        DataError: documents cannot be loaded, or there are none.
    """
    try:
        with quiet_harness():
            random.seed(seed)  # GPQA's choices are shuffled when they are loaded.
            loaded = manager.load(list(tasks))
            counts = {key: len(task.eval_docs) for key, task in loaded["tasks"].items()}
    except ImportError as error:
        raise ConfigError(f"{name}: a package is missing ({error}): pip install it.") from error
    except Exception as error:  # Of datasets, the Hub, YAML files, ...
        raise DataError(
            f"{name}: the documents of {', '.join(tasks)} cannot be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            f"{advice}"
        ) from error
    if not counts or not all(counts.values()):
        raise DataError(
            f"{name}: there is no document in {sorted(k for k in counts if not counts[k])}."
        )
    for task in loaded["tasks"].values():
        _configure(task, shots, seed, settings or {})
        if samples > 1:
            task.set_config(key="repeats", value=samples)
    drawn = None
    if limit is not None:
        drawn = {key: list(range(min(limit, count))) for key, count in counts.items()}
    elif sample is not None and sample < sum(counts.values()):
        drawn = _draw(name, counts, sample, seed)
    return LoadedBenchmark(name, loaded, drawn, chat)


def ask_harness(benchmark: LoadedBenchmark, book: AnswerBook) -> Mapping[str, Any]:
    """lm-eval's results of a benchmark, with all samples. Collective.

    Returns:
        What `lm_eval.evaluate` returns: `results`, `samples`, ...
    """
    from lm_eval import evaluate
    from lm_eval.api.model import LM

    class Kept(LM):
        """The harness's view of the book of answers."""

        tokenizer_name = ""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            found = book.answers([likelihood(book, *one.args[:2]) for one in requests])
            return [(number(a), bool(a.greedy)) for a in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            asked = [Request("rolling", one.args[0], room=book.model.room) for one in requests]
            return [number(answer) for answer in book.answers(asked)]

        def generate_until(self, requests: list[Any]) -> list[str]:
            seen: dict[Request, int] = {}
            asked = []
            for prompt, settings in (one.args[:2] for one in requests):
                request = text_request(book, prompt, settings)
                if settings.get("do_sample"):  # Asked for several times, it is several samples.
                    sample = seen[request] = seen.get(request, -1) + 1
                    request = replace(request, sample=sample)
                asked.append(request)
            return [str(answer.text) for answer in book.answers(asked)]

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return book.model.chat(chat_history, add_generation_prompt)

    found: Mapping[str, Any] = evaluate(
        lm=Kept(),
        task_dict=benchmark.loaded,
        samples=None if benchmark.drawn is None else dict(benchmark.drawn),
        bootstrap_iters=0,
        apply_chat_template=benchmark.chat,
        log_samples=True,
    )
    return found


def likelihood(book: AnswerBook, prompt: str, continuation: str) -> Request:
    """The request for the log-likelihood of a continuation."""
    return Request("likelihood", prompt, continuation, room=book.model.room)


def text_request(book: AnswerBook, prompt: str, settings: Mapping[str, Any]) -> Request:
    """The request for a text after a prompt; `settings` by lm-eval's names."""
    written = json.dumps(dict(settings), sort_keys=True)
    return Request("text", prompt, settings=written, room=book.model.room)


def number(answer: Answer) -> float:
    """The log-likelihood of an answer that has one."""
    assert answer.log_likelihood is not None
    return answer.log_likelihood


def cluster_of(doc: Mapping[str, Any]) -> str | None:
    """What a document shares with others, as 16 hex digits; None if it stands alone."""
    shared: Hashable = next((doc[key] for key in SHARED if isinstance(doc.get(key), str)), None)
    return None if shared is None else hashlib.sha256(str(shared).encode()).hexdigest()[:16]


def _configure(task: Any, shots: int | None, seed: int, settings: Mapping[str, Any]) -> None:
    if shots is not None:
        task.set_config(key="num_fewshot", value=shots)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    if settings and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(settings), update=True)
    task.set_fewshot_seed(seed=seed)
    for metric, aggregate in getattr(task, "_aggregation_list", {}).items():
        task._aggregation_list[metric] = partial(_or_infinity, aggregate)
    make = type(task).fewshot_context

    def seeded(doc: Any, *args: Any, **kwargs: Any) -> Any:
        # One generator for all documents, as the harness has it, would give a document other
        # examples when fewer documents come before it.
        own = random.Random(f"{seed}:{json.dumps(doc, sort_keys=True, default=str)}")
        task.fewshot_rnd = own
        if (sampler := getattr(task, "sampler", None)) is not None:
            sampler.rnd = own
        return make(task, doc, *args, **kwargs)

    task.fewshot_context = seeded


def _or_infinity(aggregate: Callable[[Any], Any], values: Any) -> Any:
    """A perplexity beyond all numbers is infinite; the harness would fail with it."""
    try:
        return aggregate(values)
    except OverflowError:
        return math.inf


def _draw(name: str, counts: Mapping[str, int], sample: int, seed: int) -> dict[str, list[int]]:
    """So many documents, from each task in proportion to its size, at least one."""
    if sample < len(counts):
        raise ConfigError(
            f"{name}: sample={sample} is less than its {len(counts)} tasks; draw at least one "
            "document of each."
        )
    total = sum(counts.values())
    shares = {key: max(1.0, sample * count / total) for key, count in counts.items()}
    take = {key: min(counts[key], int(share)) for key, share in shares.items()}
    by_rest = sorted(counts, key=lambda key: (take[key] - shares[key], key))
    while (left := sample - sum(take.values())) != 0:
        for key in by_rest if left > 0 else reversed(by_rest):
            if left > 0 and take[key] < counts[key]:
                take[key], left = take[key] + 1, left - 1
            elif left < 0 and take[key] > 1:
                take[key], left = take[key] - 1, left + 1
            if left == 0:
                break
    return {
        key: sorted(random.Random(f"{seed}:{name}:{key}").sample(range(count), take[key]))
        for key, count in counts.items()
    }
