"""Many prompts at a time, on the processes of a run: the texts that a model writes.

Greedy: the likeliest token each time, until a token that ends an answer. Rows are padded on the
left and masked, so that a row's text does not depend on the rows beside it (in float32; in fewer
bits sums are rounded otherwise in another shape, and two near tokens may change places).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from controlllm.common.distributed import ALONE, Ranks
from controlllm.evaluate.forgetting.losses import evaluating

__all__ = ["Written", "preferring", "write_texts"]


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        text: without special tokens, and without white space around it.
        tokens: how many were written, the one that ended it among them.
        is_cut: whether it was ended by the most tokens that were allowed.
    """

    text: str
    tokens: int
    is_cut: bool


def write_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Collection[int],
    ranks: Ranks = ALONE,
    synchronized: bool = False,
    on_token: Callable[[], object] = lambda: None,
) -> list[Written]:
    """Answer one batch of prompts for each process.

    Args:
        model: any causal language model of transformers, expanded or not; its training mode and
            torch's random state are restored.
        tokenizer: its tokenizer.
        prompts: token ids, the same on every process; each takes an equal share of them.
        max_new_tokens: most tokens of a text.
        ends: tokens that end a text.
        ranks: processes with shares of their own. Collective where there are several.
        synchronized: whether the processes hold parts of one model, so that all of them have to
            take as many forward passes as the one that takes most.
        on_token: called after each token of the batch.

    Returns:
        A text for each prompt, in order, on every process.
    """
    share = -(-len(prompts) // ranks.world_size)
    own = list(prompts[ranks.rank * share : (ranks.rank + 1) * share])
    # Forward passes of a shared model are collective: one that has nothing to do writes along.
    written = []
    if own or synchronized:
        devices = [model.device] if model.device.type == "cuda" else []
        with evaluating(model), torch.random.fork_rng(devices):
            rows = _generate(
                model, own or [prompts[0]], max_new_tokens, ends, synchronized, on_token
            )
        written = [_written(tokenizer, row, ends) for row in rows[: len(own)]]
    return [one for part in ranks.gather(written) for one in part]


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Collection[int],
    synchronized: bool,
    on_token: Callable[[], object],
) -> list[list[int]]:
    """The new token ids of each row, with what fills shorter rows up at their end."""
    ids_BT, mask_BT = _left_padded(prompts, min(ends))
    writer: Any = model  # `PreTrainedModel` is not typed as something that generates.
    with preferring(writer, _greedy(max_new_tokens, ends)):
        output_BT = writer.generate(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            stopping_criteria=StoppingCriteriaList([_Watch(on_token)]),
            synced_gpus=synchronized,
        )
    rows: list[list[int]] = output_BT[:, ids_BT.shape[1] :].tolist()
    return rows


@contextmanager
def preferring(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Inside, a model generates by `config` alone.

    Nothing that its own folder prefers (sampling, penalties, lengths) takes part; `generate` would
    take from there whatever its `generation_config` leaves open.
    """
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def _greedy(max_new_tokens: int, ends: Collection[int]) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
        use_cache=True,
    )


class _Watch(StoppingCriteria):
    """Tells of each token; never stops generation."""

    def __init__(self, on_token: Callable[[], object]) -> None:
        self.on_token = on_token

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.on_token()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch (B, T) that ends where generation starts, and its attention mask."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _written(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Collection[int]) -> Written:
    """Cut a row behind its end."""
    place = next((i for i, token in enumerate(ids) if token in ends), None)
    kept = ids if place is None else ids[:place]
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    return Written(text.strip(), len(kept) + (place is not None), place is None)
