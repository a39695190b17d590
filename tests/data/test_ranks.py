"""Several ranks, real gloo processes: who draws and prepares what, and how all stop together."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests.processes import Outcome, run_ranks, values
from transformers import PreTrainedTokenizerBase

from controlllm.data import (
    Batch,
    DataConfig,
    SourceConfig,
    TrainLoader,
    register_postprocess,
)
from controlllm.data.cache.prepare import store_folder
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.sources import open_chunks
from controlllm.data.sources.ranges import RangeChunks

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not dist.is_available(), reason="needs fork and torch.distributed"
)

SIZES = {"a": 120, "b": 40}


@pytest.fixture(params=["in memory", "in chunks"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows held in memory, or ranges of a file as of one that is too large for that."""
    if request.param == "in chunks":
        monkeypatch.setattr("controlllm.data.sources.opening.SMALL_BYTES", 0)
        monkeypatch.setattr(RangeChunks.__init__, "__defaults__", (128,))
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        rows = [{"text": f"{name}{i:03d}" + "." * (i * 7 % 13)} for i in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def make_config(folder: Path, **options: Any) -> DataConfig:
    given: dict[str, Any] = {
        "train": [SourceConfig(f"{folder}/a.jsonl", weight=3), SourceConfig(f"{folder}/b.jsonl")],
        "mix_by": "rows",
        "max_length": 32,
        "shuffle_buffer": 20,
        "cache_dir": f"{folder}/cache",
        "cache_timeout": 60.0,
    }
    if options.get("packing", True):
        given["packing_lookahead"] = 5
    return DataConfig(**{**given, **options})


def one_source(folder: Path, **options: Any) -> DataConfig:
    return make_config(folder, train=[SourceConfig(f"{folder}/a.jsonl")], **options)


def rows_of(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The first four characters of each row in a batch."""
    text = "".join(tokenizer.batch_decode(batch["input_ids"]))
    return [part[:4] for part in text.split("<s>") if part[:1] in ("a", "b")]


def slots_of(batch: Batch, length: int = 32) -> list[str]:
    """A hash of every slot of a packed batch: ids, labels and positions."""
    tensors = [batch[key].reshape(-1, length) for key in ("input_ids", "labels", "position_ids")]
    return [
        blake2b(b"".join(t[i].numpy().tobytes() for t in tensors)).hexdigest()
        for i in range(len(tensors[0]))
    ]


Tokenizer = PreTrainedTokenizerBase


def test_two_ranks_share_each_epoch(folder: Path, layout: str, pico_tokenizer: Tokenizer) -> None:
    """No row of an epoch comes twice, none is missing, and both draw as many batches."""
    config = one_source(folder, packing=False)
    config.train[0].epochs = 2

    def draw(rank: int) -> tuple[list[str], int]:
        loader = TrainLoader(config, pico_tokenizer, 1, seed=0)
        rows = [row for batch in loader for row in rows_of(batch, pico_tokenizer)]
        return rows, loader.progress()["0:a"]["examples"]

    (first, drawn), (second, _) = values(run_ranks(draw, 2, folder / "out"))
    assert len(first) == len(second) <= drawn
    counts = Counter(first) + Counter(second)
    assert max(counts.values()) == 2
    if layout == "in memory":
        assert counts == {f"a{i:03d}": 2 for i in range(SIZES["a"])}
        half = SIZES["a"] // 2
        assert not set(first[:half]) & set(second[:half])
    else:
        # A step is taken by all ranks together, so the end comes for all with the first that has
        # no row left: what the other has more of is the price, and all of it. (22 chunks of 5 or 6
        # rows are dealt row by row, the odd one by turns.)
        feed = TrainLoader(config, pico_tokenizer, 1, seed=0).feeds[0]
        sizes = [feed.chunks.count(feed.order.chunk(number)) for number in range(2 * 22)]
        shares = [
            sum(len(range((rank + number) % 2, size, 2)) for number, size in enumerate(sizes))
            for rank in (0, 1)
        ]
        assert len(feed.chunks) == 22 and sum(shares) == 2 * SIZES["a"]
        assert len(first) == min(shares) >= 116


def test_global_batches_do_not_depend_on_ranks_and_workers(
    folder: Path, layout: str, pico_tokenizer: Tokenizer
) -> None:
    """With `lanes` set: byte for byte, for every number of ranks and workers that divides them."""
    strategy = "concat" if layout == "in chunks" else "best_fit"

    def draw(ranks: int, workers: int) -> list[list[str]]:
        config = make_config(folder, lanes=4, num_workers=workers, packing_strategy=strategy)

        def of_rank(rank: int) -> list[list[str]]:
            loader = TrainLoader(config, pico_tokenizer, 4 // ranks, seed=0)
            return [slots_of(next(loader)) for _ in range(12)]

        parts = values(run_ranks(of_rank, ranks, folder / "out"))
        return [sorted(chain.from_iterable(step)) for step in zip(*parts, strict=True)]

    straight = draw(1, 0)
    assert all(len(step) == 4 for step in straight)
    for ranks, workers in ((2, 1), (1, 2), (4, 1), (2, 2)):
        assert draw(ranks, workers) == straight, (ranks, workers)


def test_a_state_of_two_ranks_goes_on_on_any_number(
    folder: Path, layout: str, pico_tokenizer: Tokenizer
) -> None:
    """With the same lanes the very same batches; with others every row that was left, once."""

    def run(
        ranks: int, steps: int | None, state: str | None, lanes: int | None, epochs: float | None
    ) -> tuple[str, list[list[str]], Counter[str]]:
        config = make_config(folder, lanes=lanes)
        for source in config.train:
            source.epochs = epochs

        def of_rank(rank: int) -> tuple[str, list[list[str]], Counter[str]]:
            loader = TrainLoader(config, pico_tokenizer, 4 // ranks, seed=0)
            if state:
                loader.load_state_dict(json.loads(state))
            steps_of, rows = [], Counter[str]()
            for _, batch in zip(range(10**6 if steps is None else steps), loader, strict=False):
                steps_of.append(slots_of(batch))
                rows.update(rows_of(batch, pico_tokenizer))
            return json.dumps(loader.state_dict()), steps_of, rows

        parts = values(run_ranks(of_rank, ranks, folder / "out"))
        assert len({part[0] for part in parts}) == 1  # every rank has the whole state
        merged = [
            sorted(chain.from_iterable(step)) for step in zip(*(p[1] for p in parts), strict=True)
        ]
        return parts[0][0], merged, sum((p[2] for p in parts), Counter())

    _, straight, _ = run(2, 14, None, 4, None)
    state, before, _ = run(2, 6, None, 4, None)
    assert before == straight[:6]
    for ranks in (1, 2, 4):
        assert run(ranks, 8, state, 4, None)[1] == straight[6:], ranks

    whole = Counter({f"{name}{i:03d}": 1 for name, size in SIZES.items() for i in range(size)})
    state, _, seen = run(2, 5, None, None, 1)
    for ranks in (1, 4):
        _, _, rest = run(ranks, None, state, None, 1)
        assert not seen - whole and not (seen + rest) - whole  # none twice
        lost = whole - (seen + rest)
        # A step takes a slot of each rank, so all stop with the first that has none: up to a slot
        # of each of the other three is not given out, of 4 rows at most (of 7 tokens or more). For
        # six seeds it was 0 to 8 rows.
        assert sum(lost.values()) <= (0 if ranks == 1 else 3 * 4), lost
        if ranks == 1:
            assert seen + rest == whole


def fails_everywhere(outcomes: list[Outcome], *words: str) -> None:
    for outcome in outcomes:
        assert outcome.error is not None, outcomes
        for word in ("DataError", *words):
            assert word in outcome.error, outcomes


@pytest.mark.parametrize("later", [None, "test_ranks.shared"])
def test_a_source_that_one_rank_cannot_open_stops_all(
    folder: Path, pico_tokenizer: Tokenizer, later: str | None
) -> None:
    """Also where the other ranks go on to a source whose work they would share."""

    def load(rank: int) -> None:
        name = "gone" if rank == 1 else "b"
        config = make_config(
            folder,
            train=[
                SourceConfig(f"{folder}/{name}.jsonl", name="broken"),
                SourceConfig(f"{folder}/a.jsonl", postprocess=later),
            ],
        )
        TrainLoader(config, pico_tokenizer, 1, seed=0)

    began = time.monotonic()
    fails_everywhere(
        run_ranks(load, 2, folder / "out", 45), "rank 1: ", "gone.jsonl' does not exist"
    )
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_that_one_rank_meets_stops_all(
    folder: Path, pico_tokenizer: Tokenizer, workers: int
) -> None:
    path = folder / "a.jsonl"
    path.write_text(path.read_text().replace('"text": "a005', '"txt": "a005'))

    def load(rank: int) -> None:
        config = one_source(folder, packing=False, num_workers=workers)
        config.train[0].epochs = 1  # The row is in one rank's half of it.
        for _ in TrainLoader(config, pico_tokenizer, 1, seed=0):
            pass

    outcomes = run_ranks(load, 2, folder / "out", 45)
    fails_everywhere(outcomes, "source 'a'", "a.jsonl:6", "no format fits")
    assert outcomes[0].error == outcomes[1].error
    assert str(outcomes[0].error).count(": source 'a': ") == 1


def test_ranks_that_see_other_data_are_told(folder: Path, pico_tokenizer: Tokenizer) -> None:
    for rank in (0, 1):
        (folder / str(rank)).mkdir()
        text = (folder / "a.jsonl").read_text()
        (folder / str(rank) / "a.jsonl").write_text(text if rank else text.replace("a001", "A001"))

    def load(rank: int) -> None:
        config = make_config(folder, train=[SourceConfig(f"{folder}/{rank}/a.jsonl")])
        TrainLoader(config, pico_tokenizer, 1, seed=0)

    fails_everywhere(run_ranks(load, 2, folder / "out", 45), "see other data", "0:a")


def note(folder: Path, what: str) -> None:
    with (folder / "calls").open("a") as log:
        log.write(f"{os.getpid()} {what}\n")


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def logging_hook(rows: Iterator[Any], context: Any) -> Iterator[Any]:
    """Twice each row with its text, which rows it has seen is noted."""
    folder = Path(context.source.path).parent
    for row in rows:
        note(folder, row["text"][:4])
        if (folder / "fail").exists() and row["text"].startswith("a007"):
            raise ValueError("seven")
        yield {**row, "made": (1, b"x")}  # a tuple and bytes: no JSON
        yield {"text": row["text"].upper()}


register_postprocess("test_ranks.shared")(logging_hook)
register_postprocess("test_ranks.alone", sharded=False)(logging_hook)


@register_postprocess("test_ranks.model", uses_model=True)
def model_hook(rows: Iterator[Any], context: Any) -> Iterator[Any]:
    for row in rows:
        note(Path(context.source.path).parent, row["text"][:4])
        yield {"text": f"{row['text'][:4]} {context.model.config.hidden_size}"}


def hooked(folder: Path, tokenizer: Tokenizer, name: str, **options: Any) -> Callable[[int], Any]:
    def load(rank: int) -> list[str]:
        source = SourceConfig(f"{folder}/a.jsonl", postprocess=name, max_rows=30)
        config = make_config(folder, train=[source])
        store: Any = TrainLoader(config, tokenizer, 1, seed=0, **options).feeds[0].chunks
        assert store.stats.rows == 30
        texts = [tokenizer.decode(store[i].input_ids) for i in range(len(store))]
        return sorted(text.removeprefix("<s>").removesuffix("</s>") for text in texts)

    return load


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["test_ranks.shared", "test_ranks.alone"])
def test_a_hook_is_shared_by_ranks_and_cached(
    folder: Path, pico_tokenizer: Tokenizer, name: str, count: int
) -> None:
    load = hooked(folder, pico_tokenizer, name)
    stores = values(run_ranks(load, count, folder / "out"))
    raw = [json.loads(line)["text"] for line in (folder / "a.jsonl").open()][:30]
    assert stores[0] == sorted(raw + [text.upper() for text in raw])
    assert all(store == stores[0] for store in stores)
    seen = [call.split() for call in calls(folder)]
    assert sorted(row for _, row in seen) == [f"a{i:03d}" for i in range(30)]  # each once
    workers = Counter(pid for pid, _ in seen)
    shared = name.endswith("shared")
    assert sorted(workers.values()) == ([30 // count] * count if shared else [30])
    # Neither other ranks nor a process alone call it again, and nothing is left lying about.
    assert values(run_ranks(load, 2, folder / "out")) == [stores[0]] * 2
    assert load(0) == stores[0]
    assert len(calls(folder)) == 30
    left = [p.name for p in (folder / "cache" / "data").iterdir()]
    assert not [n for n in left if n.endswith((".parts", ".failed", ".holder"))]


@pytest.mark.parametrize("name", ["test_ranks.shared", "test_ranks.alone"])
def test_a_hook_that_fails_on_one_rank_stops_all(
    folder: Path, pico_tokenizer: Tokenizer, name: str
) -> None:
    (folder / "fail").touch()
    load = hooked(folder, pico_tokenizer, name)
    outcomes = run_ranks(load, 2, folder / "out", 45)
    fails_everywhere(outcomes, "source 'a'", f"hook '{name}' fails", "ValueError('seven')")
    (folder / "fail").unlink()
    (folder / "calls").unlink()
    values(run_ranks(load, 2, folder / "out"))
    assert len(calls(folder)) == 30


def test_a_hook_may_use_the_model(folder: Path, pico_tokenizer: Tokenizer, pico_llama: Any) -> None:
    """Its rows belong to that model: another one never finds them."""
    small, large = pico_llama(), pico_llama(hidden_size=64)
    for model, times in ((small, 30), (small, 30), (large, 60), (small, 60)):
        load = hooked(folder, pico_tokenizer, "test_ranks.model", model=model)
        one, two = values(run_ranks(load, 2, folder / "out"))
        assert one == two == [f"a{i:03d} {model.config.hidden_size}" for i in range(30)]
        assert len(calls(folder)) == times
    outcomes = run_ranks(hooked(folder, pico_tokenizer, "test_ranks.model"), 2, folder / "out", 45)
    fails_everywhere(outcomes, "needs the model; it runs at the start of `controlllm train`")


def test_ranks_wait_while_another_run_prepares(folder: Path, pico_tokenizer: Tokenizer) -> None:
    """Two runs of two ranks, the same cache: one of the runs does the work of both."""
    load = hooked(folder, pico_tokenizer, "test_ranks.shared")
    from tests.processes import run_processes

    def whole_run(name: str) -> Callable[[], Any]:
        return lambda: values(run_ranks(load, 2, folder / name))

    stores = values(run_processes([whole_run("one"), whole_run("two")], folder / "out"))
    assert stores[0] == stores[1] and stores[0][0] == stores[0][1]
    assert len(calls(folder)) == 30
    source = SourceConfig(f"{folder}/a.jsonl", postprocess="test_ranks.shared", max_rows=30)
    config = make_config(folder, train=[source])
    encoder = RowEncoder(source, pico_tokenizer, config, training=True)
    assert store_folder(encoder, open_chunks(source)).is_dir()
