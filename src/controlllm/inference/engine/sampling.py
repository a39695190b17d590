"""From logits to one token: pure functions, and a generator that belongs to one request alone."""

import torch
from torch import Tensor

from controlllm.common.errors import ModelError
from controlllm.inference.engine.protocol import Sampling, Token

__all__ = ["LEAST_LOGPROB", "choose_token", "make_generator"]

LEAST_LOGPROB = -9999.0
"""What stands for the log probability of an impossible token, which JSON cannot write."""


def make_generator(seed: int | None) -> torch.Generator:
    """A request's own generator, on the CPU: a seed gives the same text on every device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def choose_token(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> Token:
    """Choose the next token.

    One number is drawn for each token, whatever the distribution: the choice depends on the logits
    and the generator only.

    Raises:
        ModelError: the logits are no numbers.
    """
    logits_V = logits_V.float().cpu()
    if not torch.isfinite(logits_V.max()):
        raise ModelError("the model computed numbers that are no probabilities (NaN or infinite).")
    if sampling.temperature == 0:
        chosen = int(logits_V.argmax())
    else:
        chosen = _sample(logits_V / sampling.temperature, sampling.top_p, generator)
    if sampling.top_logprobs is None:
        return Token(chosen)
    logprobs_V = logits_V.log_softmax(-1).clamp_min(LEAST_LOGPROB)
    top = logprobs_V.topk(min(sampling.top_logprobs, logprobs_V.numel()))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Token(chosen, logprobs_V[chosen].item(), tuple(pairs))


def _sample(scaled_V: Tensor, top_p: float, generator: torch.Generator) -> int:
    """Draw by the inverse of the cumulated probabilities, the likeliest first."""
    probabilities_V, order_V = scaled_V.softmax(-1).sort(descending=True, stable=True)
    cumulated_V = probabilities_V.double().cumsum(-1)
    kept = 1 + int((cumulated_V < top_p).sum()) if top_p < 1 else len(cumulated_V)
    cumulated_V = cumulated_V[: min(kept, int((probabilities_V > 0).sum()))]
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * cumulated_V[-1]
    place = int(torch.searchsorted(cumulated_V, drawn, right=True))
    return int(order_V[min(place, len(cumulated_V) - 1)])
