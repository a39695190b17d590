"""The engine against the model itself: what others ask never changes an answer."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from controlllm import load_sidecars
from controlllm.checkpoint import LoadOptions
from controlllm.common.errors import ConfigError, ModelError
from controlllm.inference.engine import (
    BusyError,
    ClosingError,
    EngineSettings,
    LocalEngine,
    ModelTable,
    Piece,
    Request,
    Sampling,
    TimeUpError,
    Voice,
)
from controlllm.inference.engine.opening import EngineSpec, open_engine

PROMPT = (1, 50, 51, 52, 53)
AS_SAVED = Voice((("tuned", None),))


def at(alpha: float) -> Voice:
    return Voice((("tuned", alpha),))


@pytest.fixture
def engine(make_tuned: Callable, chat_tokenizer: Any):
    made: list[LocalEngine] = []

    def make(expansion: dict | None = None, **settings: Any) -> LocalEngine:
        made.append(
            LocalEngine(make_tuned(**expansion or {}), chat_tokenizer, EngineSettings(**settings))
        )
        return made[-1]

    yield make
    for one in made:
        asyncio.run(one.close())


async def write(engine: LocalEngine, request: Request) -> tuple[list[int], list[Piece]]:
    """The tokens of a text, with log probabilities asked for so that all of them are told."""
    pieces = [piece async for piece in engine.generate(request)]
    return [token.id for piece in pieces for token in piece.tokens], pieces


async def until_running(engine: LocalEngine) -> None:
    """Wait until the model's thread has taken what waits."""
    async with asyncio.timeout(60):
        while not engine.health().running:
            await asyncio.sleep(0.01)


def greedy(voice: Voice, ids: tuple[int, ...] = PROMPT, most: int = 12) -> Request:
    return Request(ids, voice, Sampling(most, temperature=0))


def test_greedy_equals_generate_at_every_alpha(engine, make_tuned: Callable) -> None:
    model, writer = make_tuned(), engine()
    for voice, alpha in [(AS_SAVED, None), (at(0.3), 0.3), (at(1.0), 1.0), (Voice(), 0.0)]:
        ids, pieces = asyncio.run(write(writer, greedy(voice)))
        model.set_alpha(alpha)
        expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)
        assert ids == expected[0, len(PROMPT) :].tolist()
        assert pieces[-1].finish == "length"
        assert (pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens) == (5, 12)


def test_the_base_is_the_base(engine, pico_llama: Callable) -> None:
    base = pico_llama(vocab_size=261, max_position_embeddings=512)
    ids, _ = asyncio.run(write(engine(), greedy(Voice())))
    expected = base.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)
    assert ids == expected[0, len(PROMPT) :].tolist()


def mixed(count: int) -> list[Request]:
    """Requests of every kind, of which several have the same prompts and seeds."""
    draw = random.Random(0)
    voices = [Voice(), AS_SAVED, at(0.3), at(0.5), at(0.51), at(1.0)]
    prompts = [tuple(draw.choices(range(3, 259), k=draw.choice((3, 9, 30)))) for _ in range(9)]
    made = []
    for _ in range(count):
        sampling = Sampling(
            draw.randint(1, 6),
            draw.choice((0.0, 0.7, 1.3)),
            draw.choice((1.0, 0.8)),
            seed=draw.choice((None, 1, 2)),
        )
        if sampling.seed is None:  # Nothing to compare with, unless it is greedy.
            sampling = Sampling(sampling.max_tokens, temperature=0)
        made.append(Request(draw.choice(prompts), draw.choice(voices), sampling))
    return made


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_mixed_requests_equal_single_runs(engine, count: int) -> None:
    """All at once, some of them given up in the middle, against one at a time on fresh caches."""
    requests = mixed(count)
    crowd = engine(max_running=8, max_waiting=2 * count, cache_mib=1)

    async def leave(request: Request) -> None:
        async for _ in (text := crowd.generate(request)):
            await text.aclose()
            return

    async def all_at_once() -> list[list[int]]:
        leaving = [asyncio.create_task(leave(one)) for one in requests[:: max(count // 20, 1)]]
        done = await asyncio.gather(*(write(crowd, one) for one in requests))
        await asyncio.gather(*leaving)
        return [ids for ids, _ in done]

    found = asyncio.run(all_at_once())
    alone = engine(max_running=1, cache_mib=0)
    known: dict[Request, list[int]] = {}
    for request, ids in zip(requests, found, strict=True):
        if request not in known:
            known[request] = asyncio.run(write(alone, request))[0]
        assert ids == known[request], request
    assert len({tuple(ids) for ids in known.values()}) > len(known) // 3


def test_the_next_turn_reads_only_what_is_new(engine) -> None:
    writer = engine()
    ids, _ = asyncio.run(write(writer, greedy(AS_SAVED)))
    longer = (*PROMPT, *ids, 60, 61)

    def usage(voice: Voice, seed: int | None = None) -> int:
        request = Request(longer, voice, Sampling(1, temperature=0, seed=seed))
        return asyncio.run(write(writer, request))[1][-1].usage.cached_tokens

    assert usage(at(0.3)) == 0
    assert usage(AS_SAVED, seed=1) == 0  # A seed repeats bit for bit: no other's cache counts.
    assert usage(AS_SAVED) >= len(PROMPT) + len(ids) - 1


def test_stops_and_ends(engine, chat_tokenizer) -> None:
    writer = engine()
    ids, pieces = asyncio.run(write(writer, greedy(AS_SAVED, most=30)))
    text = "".join(piece.text for piece in pieces)
    stop = text[4:6]
    request = Request(PROMPT, AS_SAVED, Sampling(30, temperature=0, stop=(stop,)))
    _, pieces = asyncio.run(write(writer, request))
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert pieces[-1].finish == "stop"
    # The model's own end: told as a stop, without text.
    writer._desk.ends = frozenset([ids[3]])
    found, pieces = asyncio.run(write(writer, greedy(AS_SAVED, most=30)))
    assert found == ids[:3]
    assert (pieces[-1].finish, pieces[-1].usage.completion_tokens) == ("stop", 4)


def test_log_probabilities_are_the_models_own(engine, make_tuned: Callable) -> None:
    request = Request(PROMPT, at(0.3), Sampling(4, temperature=0.5, seed=1, top_logprobs=3))
    _, pieces = asyncio.run(write(engine(), request))
    tokens = [token for piece in pieces for token in piece.tokens]
    model = make_tuned()
    model.set_alpha(0.3)
    ids = torch.tensor([[*PROMPT, *(token.id for token in tokens)]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    for place, token in enumerate(tokens):
        assert token.logprob == pytest.approx(logprobs[place, token.id].item(), abs=1e-4)
        assert [i for i, _ in token.top] == logprobs[place].topk(3).indices.tolist()


def test_who_leaves_is_not_written_for(engine) -> None:
    writer = engine(max_running=1)

    async def story() -> None:
        long = writer.generate(greedy(AS_SAVED, most=400))
        await anext(long)
        waits = asyncio.create_task(write(writer, greedy(AS_SAVED, most=1)))
        await asyncio.sleep(0)
        assert writer.health().running == 1
        await long.aclose()
        await waits
        async with asyncio.timeout(60):  # The last piece is given a moment before its work ends.
            while writer.health().running + writer.health().waiting:
                await asyncio.sleep(0.01)

    asyncio.run(story())


def test_the_queue_is_bounded_and_those_who_give_up_leave_it(engine) -> None:
    writer = engine(max_running=1, max_waiting=2)
    held = threading.Event()

    async def story() -> None:
        job = asyncio.create_task(writer.run(lambda hands: held.wait(30)))
        await until_running(writer)
        waiting = [asyncio.create_task(write(writer, greedy(AS_SAVED, most=1))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await write(writer, greedy(AS_SAVED))
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        waiting[0] = asyncio.create_task(write(writer, greedy(AS_SAVED, most=1)))
        await asyncio.sleep(0)
        held.set()
        assert await job
        await asyncio.gather(*waiting)

    asyncio.run(story())


def test_jobs_have_the_model_alone_and_leave_no_trace(engine) -> None:
    writer = engine()
    expected = asyncio.run(write(writer, greedy(at(0.3))))[0]
    threads = set()

    def job(hands: Any) -> float:
        threads.add(threading.current_thread().name)
        hands.speak_as(Voice())
        hands.model.set_alpha(0.9)
        hands.check()
        return hands.model(torch.tensor([PROMPT])).logits.sum().item()

    async def story() -> None:
        text = asyncio.create_task(write(writer, greedy(at(0.3))))
        values = [await writer.run(job) for _ in range(4)]
        assert len(set(values)) == 1
        assert (await text)[0] == expected
        with pytest.raises(ZeroDivisionError):
            await writer.run(lambda hands: 1 // 0)
        with pytest.raises(TimeUpError):
            await writer.run(lambda hands: [hands.check() for _ in iter(int, 1)], seconds=0.2)

    asyncio.run(story())
    assert threads == {"model"}
    assert asyncio.run(write(writer, greedy(at(0.3))))[0] == expected


def test_time_is_bounded(engine) -> None:
    writer = engine()
    request = Request(PROMPT, AS_SAVED, Sampling(480, temperature=0), seconds=0.05)
    with pytest.raises(TimeUpError, match=r"0\.05 seconds"):
        asyncio.run(write(writer, request))
    assert asyncio.run(write(writer, greedy(AS_SAVED)))[0]


def test_time_in_the_queue_counts(engine) -> None:
    writer = engine(max_running=1)
    held = threading.Event()

    async def story() -> None:
        job = asyncio.create_task(writer.run(lambda hands: held.wait(60)))
        await asyncio.sleep(0)
        await until_running(writer)
        with pytest.raises(TimeUpError):
            await write(writer, Request(PROMPT, AS_SAVED, seconds=0.1))
        with pytest.raises(TimeUpError):
            await writer.run(lambda hands: None, seconds=0.1)
        assert writer.health().waiting == 0
        held.set()
        await job

    asyncio.run(story())


def test_a_failing_model_fails_one_request(engine) -> None:
    writer = engine()
    expected = asyncio.run(write(writer, greedy(AS_SAVED)))[0]
    with pytest.raises(ModelError, match="IndexError"):
        asyncio.run(write(writer, greedy(AS_SAVED, (5, 10**6))))
    assert asyncio.run(write(writer, greedy(AS_SAVED)))[0] == expected


def test_closing_lets_what_runs_finish_and_takes_nothing_more(engine) -> None:
    writer = engine()

    async def story() -> None:
        text = asyncio.create_task(write(writer, greedy(AS_SAVED)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(writer.close(30))
        await asyncio.sleep(0)
        with pytest.raises(ClosingError):
            await write(writer, greedy(AS_SAVED))
        assert len((await text)[0]) == 12
        await closing
        assert not writer.health().works

    asyncio.run(story())


def test_closing_ends_what_takes_too_long(engine) -> None:
    writer = engine()

    async def story() -> None:
        text: AsyncIterator[Piece] = writer.generate(greedy(AS_SAVED, most=480))
        await anext(text)
        await writer.close()
        with pytest.raises(ClosingError):
            async for _ in text:
                pass

    asyncio.run(story())


def test_a_saved_dial_is_what_as_saved_means(make_tuned, chat_tokenizer) -> None:
    model = make_tuned()
    model.set_alpha(0.3)
    writer = LocalEngine(model, chat_tokenizer)
    saved, base, same = (
        asyncio.run(write(writer, greedy(voice)))[0] for voice in (AS_SAVED, Voice(), at(0.3))
    )
    assert saved == same != base
    asyncio.run(writer.close())


def test_named_sidecars_and_blends_are_the_models_own(make_tuned, chat_tokenizer, tmp_path) -> None:
    """From folders, at the dial that each was saved with, alone and together."""
    folders = {name: str(tmp_path / name) for name in ("maths", "zh")}
    for name, blocks, dial in (("maths", 2, 0.3), ("zh", 1, None)):
        model = make_tuned(num_blocks=blocks)
        model.set_alpha(dial)
        model.save_sidecar(folders[name])
    base = model.unload()
    base.save_pretrained(tmp_path / "base")
    chat_tokenizer.save_pretrained(tmp_path / "base")
    writer = open_engine("local", EngineSpec(str(tmp_path / "base"), sidecars=folders))
    own = load_sidecars(base, folders)
    asked = {
        (("maths", None),): {"maths": 0.3},
        (("zh", None),): {"zh": None},
        (("maths", 0.9),): {"maths": 0.9},
        (("maths", 0.4), ("zh", 0.2)): {"maths": 0.4, "zh": 0.2},
        (): {},
    }
    for alphas, dial in asked.items():
        own.set_alpha(dial)
        expected = own.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)
        ids = asyncio.run(write(writer, greedy(Voice(alphas))))[0]
        assert ids == expected[0, len(PROMPT) :].tolist()
    assert ModelTable(writer.sidecars).names == ["base", "maths", "zh"]
    asyncio.run(writer.close())
    with pytest.raises(ConfigError, match="is tuned itself"):
        load = LoadOptions(base=str(tmp_path / "base"))
        open_engine("local", EngineSpec(folders["zh"], sidecars=folders, load=load))
