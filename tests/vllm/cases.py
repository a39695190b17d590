"""The models that vLLM runs in these tests, and the requests they are asked."""

import math
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from controlllm import ControlLLMForCausalLM, expand, load_sidecars

__all__ = [
    "CASES",
    "TOKENS",
    "Case",
    "Written",
    "dials",
    "make_model",
    "reference",
    "requests",
    "turn",
]

TOKENS = 12
TIE = 1e-3
Words = dict[str, Any]
"""What a request says in `extra_args`."""
ALPHAS: list[Words] = [{}, *({"alpha": alpha} for alpha in (0.0, 0.3, 1.0, 0.7))]
SIDECARS: list[Words] = [
    {},
    {"sidecar": "maths"},
    {"sidecar": "maths", "alpha": 0.3},
    {"sidecar": "zh", "alpha": 0.7},
    {"sidecar": ["zh", "maths"], "alpha": [0.3, 0.4]},
]
ENDS = {"expand_ends": True}
NAMED = {
    "maths": {"layers": [0, 1], "num_blocks": 2} | ENDS,
    "zh": {"layers": [1, 3], "structure": "stack"},
}
MORE = {
    "maths": {"layers": [1, 3], "interpolator": "dlerp", "dial": 0.6} | ENDS,
    "zh": {"layers": [1, 2], "structure": "hybrid"} | ENDS,
}


_SHORT = {"expand_ends": "ends", "dial": "dial {}", "alpha": "alpha {}"}


@dataclass(frozen=True)
class Case:
    """An expansion of a base, and how vLLM runs it."""

    base: str = "llama"
    expansion: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    added_tokens: int = 0
    compiled: bool = False
    ranks: int = 1
    sidecars: dict[str, Any] = field(default_factory=dict)

    def words(self) -> list[str]:
        """What is special about the expansion, or that of each sidecar."""
        if self.sidecars:
            said = [f"{n}: {' '.join(Case(expansion=e).words())}" for n, e in self.sidecars.items()]
            return said + ["tied"] * self.tied
        told = {k: v for k, v in self.expansion.items() if k not in ("layers", "num_blocks")}
        said = [_SHORT.get(k, "{}").format(v) for k, v in told.items()] or ["lerp"]
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
    Case(expansion={"dial": 0.4}),
    Case(sidecars=NAMED),
    Case("qwen3", sidecars=MORE, tied=True),
    *(Case(expansion={"structure": one}, compiled=True) for one in ("concat", "stack", "hybrid")),
    Case(expansion={"interpolator": "dlerp"}, compiled=True),
    Case(expansion=ENDS, added_tokens=5, compiled=True),
    Case(sidecars=NAMED, compiled=True),
    Case("qwen3", sidecars=MORE, tied=True, compiled=True),
    Case(ranks=2),
    Case(expansion=ENDS, added_tokens=5, ranks=2),
    Case("qwen3", {"structure": "hybrid", "interpolator": "dlerp"} | ENDS, True, ranks=2),
    Case(sidecars=NAMED, ranks=2),
]


def make_model(case: Case) -> ControlLLMForCausalLM:
    """A random small base with random copies: every alpha, every sidecar gives another text."""
    if not case.sidecars:
        return _expanded(case, case.expansion).eval()
    with tempfile.TemporaryDirectory() as folder:
        places = {name: f"{folder}/{name}" for name in case.sidecars}
        for seed, (name, expansion) in enumerate(case.sidecars.items()):
            _expanded(case, expansion, seed).save_sidecar(places[name])
        return load_sidecars(_base(case), places)


def _base(case: Case) -> PreTrainedModel:
    config, kind = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[case.base]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(
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


def _expanded(case: Case, expansion: dict[str, Any], seed: int = 0) -> ControlLLMForCausalLM:
    settings = {"num_blocks": 2} | expansion
    dial = settings.pop("dial", None)
    model = expand(_base(case), **settings)
    if case.added_tokens:
        model.resize_token_embeddings(259 + case.added_tokens)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed + 1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.set_alpha(dial)
    return model


def requests(case: Case) -> list[tuple[list[int], Words]]:
    """Prompts in every voice: short ones, one of several cache blocks, one that begins like it."""
    draw = torch.Generator().manual_seed(1)
    top = 259 + case.added_tokens
    prompts = [torch.randint(3, top, (n,), generator=draw).tolist() for n in (5, 80, 33)]
    prompts.append(prompts[1][:64] + prompts[0])
    return [(p, words) for p in prompts for words in (SIDECARS if case.sidecars else ALPHAS)]


def dials(model: ControlLLMForCausalLM) -> dict[str | None, Any]:
    """The dial of each sidecar, before any is turned; None is the one without a name."""
    if model.sidecars:
        return {name: one.dial for name, one in model.expansions.items()}
    return {None: model.expansion.dial}


def turn(model: ControlLLMForCausalLM, words: Words, saved: dict[str | None, Any]) -> None:
    """Let a model be what a request asks for."""
    alpha, named = words.get("alpha"), words.get("sidecar")
    names, alphas = (named, alpha) if isinstance(named, list) else ([named], [alpha])
    pairs = zip(names, alphas, strict=True)
    asked = {name: saved.get(name) if value is None else value for name, value in pairs}
    if model.sidecars:
        model.set_alpha({name: value for name, value in asked.items() if name is not None})
    else:
        model.set_alpha(asked[None])


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
def reference(model: ControlLLMForCausalLM, asked: list[tuple[list[int], Words]]) -> list[Written]:
    """What transformers writes for each request, alone."""
    written, saved = [], dials(model)
    for prompt, words in asked:
        turn(model, words, saved)
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
