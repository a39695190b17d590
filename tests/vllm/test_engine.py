"""vLLM writes what transformers writes, at every alpha, side by side in one batch.

Kernels round differently: where the two likeliest tokens are equal to rounding (`TIE`), either may
be written, and what follows is another text.
"""

import math
from importlib.util import find_spec

import pytest
import torch
from tests.vllm.cases import (
    CASES,
    ENDS,
    MORE,
    NAMED,
    TIE,
    TOKENS,
    Case,
    dials,
    make_model,
    reference,
    requests,
    turn,
)
from tests.vllm.engines import in_own_process, make_engine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
    pytest.mark.timeout(1800),
]


def prompts_of(asked):
    from vllm import TokensPrompt

    return [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in asked]


def params(words=None, **more):
    from vllm import SamplingParams

    settings = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False}
    return SamplingParams(**settings | more, extra_args=words or {})


def write(folder, case, asked):
    engine = make_engine(folder, case.ranks, case.compiled)
    wanted = [params(words) for _, words in asked]
    outputs = engine.generate(prompts_of(asked), wanted, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_equal_those_of_transformers(case, tmp_path, table):
    model = make_model(case)
    model.save_pretrained(tmp_path)
    asked = requests(case)
    expected = reference(model, asked)
    assert len({tuple(one.tokens) for one in expected}) > len(asked) / 2  # words matter
    got = in_own_process(write, str(tmp_path), case, asked)
    leads = [one.lead_where_other(tokens) for one, tokens in zip(expected, got, strict=True)]
    others = [lead for lead in leads if lead < math.inf]
    table.append((case, len(asked), others))
    pairs = zip(asked, leads, strict=True)
    told = [(len(p), words, lead) for (p, words), lead in pairs if lead < math.inf]
    assert len(others) <= 2 and max(others, default=0) < TIE, told


def score(folder, asked):
    engine = make_engine(folder, enable_prefix_caching=False)
    wanted = [params(words, max_tokens=1, prompt_logprobs=0) for _, words in asked]
    outputs = engine.generate(prompts_of(asked), wanted, use_tqdm=False)
    return [
        [place[token].logprob for place, token in zip(o.prompt_logprobs[1:], p[1:], strict=True)]
        for o, (p, _) in zip(outputs, asked, strict=True)
    ]


@pytest.mark.parametrize("case", [Case(expansion=ENDS), Case(sidecars=MORE)], ids=str)
def test_prompts_are_scored_at_the_alpha_of_their_request(case, tmp_path):
    """The head of a prompt's tokens is asked for one request at a time, in no batch."""
    model = make_model(case)
    saved = dials(model)
    model.save_pretrained(tmp_path)
    asked = requests(case)[:5]
    got = in_own_process(score, str(tmp_path), asked)
    for (prompt, words), scores in zip(asked, got, strict=True):
        turn(model, words, saved)
        ids = torch.tensor([prompt])
        with torch.no_grad():
            said = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        expected = said.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
        assert scores == pytest.approx(expected, abs=1e-4)
    assert not math.isclose(got[1][0], got[3][0], abs_tol=1e-3)


def ask_again(folder, prompt, asked):
    engine = make_engine(folder)
    found = []
    for words in asked:
        [output] = engine.generate(prompts_of([(prompt, words)]), params(words), use_tqdm=False)
        found.append(output.num_cached_tokens)
    return found


MATHS, ZH = ({"sidecar": name, "alpha": 0.3} for name in NAMED)


@pytest.mark.parametrize(
    ("case", "asked"),
    [
        (Case(), [{"alpha": 0.3}, {"alpha": 0.3}, {"alpha": 0.7}, {}, {"alpha": 0.7}]),
        (Case(sidecars=NAMED), [MATHS, MATHS, ZH, {}, ZH]),
    ],
    ids=str,
)
def test_cached_prefixes_are_those_of_the_same_words(case, asked, tmp_path):
    make_model(case).save_pretrained(tmp_path)
    prompt = requests(case)[5][0]
    assert in_own_process(ask_again, str(tmp_path), prompt, asked) == [0, 64, 0, 0, 64]


def ask_wrongly(folder, words):
    from vllm.exceptions import VLLMValidationError

    engine = make_engine(folder)
    said = []
    for extra_args in words:
        try:
            engine.generate(prompts_of([([5, 6], {})]), params(extra_args), use_tqdm=False)
            said.append("")
        except VLLMValidationError as error:
            said.append(str(error))
    return said


def test_requests_that_say_what_is_not_known_are_refused(tmp_path):
    make_model(Case()).save_pretrained(tmp_path)
    words = [{"alpha": 2}, {"alhpa": 0.3}, {"alpha": "high"}, {"alpha": 1}]
    said = in_own_process(ask_wrongly, str(tmp_path), words)
    assert "allowed: a number from 0" in said[0] and "allowed: a number from 0" in said[2]
    assert "Did you mean 'alpha'" in said[1] and said[3] == ""


def test_requests_for_sidecars_that_are_not_there_are_refused(tmp_path):
    make_model(Case(sidecars=NAMED)).save_pretrained(tmp_path)
    words = [{"sidecar": "math"}, {"alpha": 0.3}, {"sidecar": "zh", "alpha": 2}, {"sidecar": "zh"}]
    said = in_own_process(ask_wrongly, str(tmp_path), words)
    assert "sidecar='math' is not known; allowed: maths, zh" in said[0]
    assert "does not say whose it is" in said[1] and "a number from 0" in said[2]
    assert said[3] == ""


def configure(folder, settings):
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs(
        folder, skip_tokenizer_init=True, max_model_len=64, **settings
    ).create_engine_config()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2: a copy's KV cache"),
        ({"enable_lora": True}, "lora_config=LoRAConfig: vLLM's LoRA layers"),
        (
            {
                "speculative_config": {
                    "method": "ngram",
                    "num_speculative_tokens": 2,
                    "prompt_lookup_max": 2,
                }
            },
            "speculative",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_engines_that_cannot_work_are_refused(settings, reason, tmp_path):
    make_model(Case()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        in_own_process(configure, str(tmp_path), settings)
    assert reason in str(caught.value)


def test_blended_norms_are_refused(tmp_path):
    case = Case(expansion={"relaxed_norm": 0.5})
    make_model(case).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"cannot serve relaxed_norm=0\.5"):
        in_own_process(configure, str(tmp_path), {})


def test_what_was_not_tried_compiled_is_refused(tmp_path):
    make_model(Case(expansion={"interpolator": "slerp"})).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"concat with slerp .* --enforce-eager"):
        in_own_process(configure, str(tmp_path), {})
    in_own_process(configure, str(tmp_path), {"enforce_eager": True})
