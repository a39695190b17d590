"""The models that vLLM runs in these tests, and the requests they are asked."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from controlllm import ControlLLMForCausalLM, expand

__all__ = ["CASES", "TOKENS", "Case", "Written", "make_model", "reference", "requests"]

TOKENS = 12
TIE = 1e-3
ALPHAS = (None, 0.0, 0.3, 1.0, 0.7)
ENDS = {"expand_ends": True}


@dataclass(frozen=True)
class Case:
    """An expansion of a base, and how vLLM runs it."""

    base: str = "llama"
    expansion: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    added_tokens: int = 0
    compiled: bool = False
    ranks: int = 1

    def words(self) -> list[str]:
        """What is special about the expansion."""
        said = ["ends" if k == "expand_ends" else v for k, v in self.expansion.items()] or ["lerp"]
        return said + ["tied"] * self.tied + ["added tokens"] * bool(self.added_tokens)

    def __str__(self) -> str:
        said = [self.base, *self.words()]
        return "-".join([*said, "compiled" if self.compiled else "eager", f"tp{self.ranks}"])


CASES = [
    *(Case(expansion={"structure": one}) for one in ("concat", "stack", "hybrid")),
    *(
        Case(expansion={"interpolator": one})
        for one in ("slerp", "dlerp", "dlerpin", "moe", "prog", "proj")
    ),
    Case(expansion=ENDS),
    Case(expansion=ENDS, added_tokens=5),
    Case("qwen3"),
    Case("qwen3", {"structure": "stack"}),
    Case("qwen3", {"structure": "hybrid", "interpolator": "dlerp"} | ENDS, tied=True),
    Case(compiled=True),
    Case(expansion=ENDS, added_tokens=5, compiled=True),
    Case(ranks=2),
    Case(expansion=ENDS, added_tokens=5, ranks=2),
    Case("qwen3", {"structure": "hybrid", "interpolator": "dlerp"} | ENDS, True, ranks=2),
]


def make_model(case: Case) -> ControlLLMForCausalLM:
    """A random small base with random copies: every alpha gives another text."""
    config, kind = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[case.base]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = kind(
            config(
                vocab_size=259,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=32,  # the smallest that vLLM's attention on CPUs knows
                max_position_embeddings=128,
                initializer_range=0.2,
                tie_word_embeddings=case.tied,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=None,  # texts of random models are of one length
            )
        )
        model = expand(base, num_blocks=2, **case.expansion)
        if case.added_tokens:
            model.resize_token_embeddings(259 + case.added_tokens)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def requests(case: Case) -> list[tuple[list[int], float | None]]:
    """Prompts at every alpha: short ones, one of several cache blocks, one that begins like it."""
    draw = torch.Generator().manual_seed(1)
    top = 259 + case.added_tokens
    prompts = [torch.randint(3, top, (n,), generator=draw).tolist() for n in (5, 80, 33)]
    prompts.append(prompts[1][:64] + prompts[0])
    return [(prompt, alpha) for prompt in prompts for alpha in ALPHAS]


@dataclass(frozen=True)
class Written:
    """What transformers writes for a request.

    Attributes:
        tokens: always the likeliest.
        leads: by how much each is likelier than the next one, in nats.
    """

    tokens: list[int]
    leads: list[float]

    def lead_where_other(self, tokens: list[int]) -> float:
        """The lead of the first token that is another one here; infinite where all are equal."""
        pairs = zip(self.tokens, tokens, strict=True)
        first = next((place for place, (one, two) in enumerate(pairs) if one != two), None)
        return math.inf if first is None else self.leads[first]


@torch.no_grad()
def reference(
    model: ControlLLMForCausalLM, asked: list[tuple[list[int], float | None]]
) -> list[Written]:
    """What transformers writes for each request, alone."""
    written = []
    for prompt, alpha in asked:
        model.set_alpha(alpha)
        ids = torch.tensor([prompt])
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        best = torch.cat(answer.scores).topk(2).values
        leads = (best[:, 0] - best[:, 1]).tolist()
        written.append(Written(answer.sequences[0, len(prompt) :].tolist(), leads))
    return written
