"""Models that answer: one of transformers in this process, or one that vLLM has loaded."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from controlllm.common.context import context_of
from controlllm.common.errors import ConfigError, DataError
from controlllm.common.storage.files import file_digest
from controlllm.evaluate.items.asking import Answering
from controlllm.evaluate.items.store import Answer, Request
from controlllm.evaluate.suites.quiet_harness import quiet_harness

__all__ = ["StoredModel", "live_model", "vllm_identity", "vllm_model"]

MOST_ASKED_AT_ONCE = 64
"""Of vLLM, which makes batches by itself: so many sequences times `AnswerBook`'s chunk."""


def live_model(
    model: nn.Module, tokenizer: Any, batch_size: int, max_length: int | None = None
) -> Answering:
    """A model of transformers in this process, asked as lm-evaluation-harness asks it.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: is copied, as the harness sets padding on it.
        batch_size: sequences per forward pass.
        max_length: longest input in tokens; None = the model's own.
    """
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):
        """The harness's model, which also notes what was cut off."""

        ended: list[bool]

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **kw: Any) -> Any:
            output = super()._model_generate(context, max_length, stop, **kw)
            rows = output[:, context.shape[1] :].tolist()
            self.ended += [self._is_ended(row, stop) for row in rows]
            return output

        def _is_ended(self, row: list[int], stop: list[str]) -> bool:
            if self.eot_token_id in row:
                return True
            text = self.tok_decode(row, skip_special_tokens=False)
            return any(word in text for word in stop if word)

    with quiet_harness():
        harness = Live(
            pretrained=model,
            backend="causal",
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            max_length=max_length or context_of(model),
        )
    return _Harness(harness, batch_size)


@contextmanager
def vllm_model(
    folder: str, dtype: str = "auto", max_length: int | None = None
) -> Iterator[Answering]:
    """A plain or collapsed model, loaded by vLLM; its memory is given back at the end.

    Raises:
        ConfigError: vLLM is not installed.
    """
    _require_vllm()
    from lm_eval.models.vllm_causallms import VLLM

    with quiet_harness():
        harness = VLLM(pretrained=folder, dtype=dtype, batch_size="auto")
    try:
        yield _Harness(harness, MOST_ASKED_AT_ONCE)
    finally:
        del harness.model
        torch.cuda.empty_cache()


def vllm_identity(folder: str, dtype: str) -> dict[str, str]:
    """Whose answers they are: the digest of the model's files, and the version of vLLM.

    Raises:
        ConfigError: vLLM is not installed, or there is no folder with weights in safetensors.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"engine=vllm reads a folder with whole weights in safetensors, which {folder} is not: "
            "write one by `controlllm export --form collapsed`."
        )
    _require_vllm()
    files += [path for path in [Path(folder) / "tokenizer.json"] if path.is_file()]
    weights = " ".join(f"{path.name}:{file_digest(path)}" for path in files)
    return {"weights": weights, "dtype": dtype, "engine": f"vllm {version('vllm')}"}


class StoredModel:
    """Stands for a model that is not loaded: what its store has not, it refuses.

    Args:
        room: the model's longest input in tokens.
        tokenizer: its tokenizer, for the chat template.
    """

    batch_size = 1

    def __init__(self, room: int, tokenizer: Any) -> None:
        self.room, self.tokenizer = room, tokenizer

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Refuse.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"the store lacks an answer ({requests[0].kind} after {requests[0].prompt[-60:]!r}): "
            "other questions, settings or another store than before. Leave --stored out to ask."
        )

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages behind the chat template, as the harness puts them."""
        rendered: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return rendered


def _require_vllm() -> None:
    try:
        version("vllm")
    except PackageNotFoundError:
        raise ConfigError(
            "engine=vllm needs vLLM, which is not installed: `pip install vllm`, or leave it out."
        ) from None


class _Harness:
    """A model of lm-evaluation-harness, by what all of them offer."""

    def __init__(self, harness: Any, batch_size: int) -> None:
        self.harness = harness
        self.batch_size = batch_size
        self.room = int(harness.max_length)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        kind = requests[0].kind
        if kind == "text":
            return self._write(requests)
        if kind == "rolling":
            texts = [_Asked((one.prompt,)) for one in requests]
            values = self.harness.loglikelihood_rolling(texts, disable_tqdm=True)
            return [Answer(log_likelihood=float(value)) for value in values]
        # No token is shorter than a byte: only these may be longer than what the model reads.
        long = [len(one.continuation.encode()) >= self.room for one in requests]
        pairs = [
            _Asked((one.prompt, one.continuation))
            for one, in_pieces in zip(requests, long, strict=True)
            if not in_pieces
        ]
        found = iter(self.harness.loglikelihood(pairs, disable_tqdm=True) if pairs else ())
        told = [
            self._in_pieces(one) if in_pieces else next(found)
            for one, in_pieces in zip(requests, long, strict=True)
        ]
        return [Answer(log_likelihood=float(ll), greedy=bool(greedy)) for ll, greedy in told]

    def _in_pieces(self, request: Request) -> tuple[float, bool]:
        """The likelihood of a continuation that may be longer than the model reads at once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        if request.prompt:
            context, continuation = self.harness._encode_pair(request.prompt, request.continuation)
        else:
            context = [self.harness.prefix_token_id]
            continuation = self.harness.tok_encode(request.continuation, add_special_tokens=False)
        whole = [(("", ""), context, continuation)]
        if len(continuation) >= self.room:
            windows = get_rolling_token_windows(continuation, context[-1], self.room, 1)
            whole = [(("", ""), *make_disjoint_window(window)) for window in windows]
        found = self.harness._loglikelihood_tokens(whole, disable_tqdm=True)
        return sum(ll for ll, _ in found), all(greedy for _, greedy in found)

    def _write(self, requests: Sequence[Request]) -> list[Answer]:
        settings = json.loads(requests[0].settings)
        most = int(settings.get("max_gen_toks", self.harness.max_gen_toks))
        if most >= self.room:
            raise ConfigError(
                f"answers of up to {most} tokens do not fit into the model's {self.room}: set "
                "--max_new_tokens to less."
            )
        # In the harness's own order, so that what is noted stands in the order of what it returns.
        order = sorted(
            range(len(requests)),
            key=lambda i: (-len(self.harness.tok_encode(requests[i].prompt)), requests[i].prompt),
        )
        if settings.get("do_sample"):
            torch.manual_seed(int(requests[order[0]].key[:15], 16))
        asked = [_Asked((requests[i].prompt, dict(settings))) for i in order]
        self.harness.ended = []
        texts = self.harness.generate_until(asked, disable_tqdm=True)
        # Other engines tell the text only: one that is as long as it may be was cut.
        ended = self.harness.ended or [len(self.harness.tok_encode(x)) < most for x in texts]
        told = {i: Answer(text=texts[k], cut_off=not ended[k]) for k, i in enumerate(order)}
        return [told[i] for i in range(len(requests))]

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        rendered: str = self.harness.apply_chat_template(messages, add_generation_prompt)
        return rendered


@dataclass(frozen=True)
class _Asked:
    """A request as the harness takes it."""

    args: tuple[Any, ...]
