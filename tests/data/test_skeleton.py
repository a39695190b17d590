"""Filling in a skeleton is rendering the template, whatever the contents are."""

import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_render import EXPECTED as ANY
from tests.data.test_templates import EXPECTED as BUILT_IN
from tests.data.test_templates import MARKS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from controlllm.common.errors import DataError
from controlllm.data import DataConfig
from controlllm.data.examples.render import Prepared, Renderer

# What a template may do to contents: only the first few leave them as they are.
PECULIAR = {
    "strips": "{% for m in messages %}[{{ m.role }}]{{ m.content.strip() }}|{% endfor %}",
    "filter": "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} |{% endfor %}",
    "left": "{% for m in messages %}[{{ m.role }}]{{ m.content.lstrip('\\n ') }}|{% endfor %}",
    "empty": "{% for m in messages %}{% if m.content %}<{{ m.content }}>{% else %}-{% endif %}|"
    "{% endfor %}",
    "stripped empty": "{% for m in messages %}{% if m.content.strip() %}<{{ m.content }}>"
    "{% else %}-{% endif %}|{% endfor %}",
    "holds": "{% for m in messages %}{% if '</think>' in m.content %}*{% endif %}{{ m.content }}|"
    "{% endfor %}",
    "tilde": "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '|' }}{% endfor %}",
    "length": "{% for m in messages %}{{ m.content | length }}:{{ m.content }}|{% endfor %}",
    "capitals": "{% for m in messages %}{{ m.content | upper }}{{ m.content }}|{% endfor %}",
    "json": "{% for m in messages %}{{ m.content | tojson }}|{{ m.content }}|{% endfor %}",
    "joined": "{% for m in messages %}{{ (m.role + m.content) | upper }}={{ m.content }}|"
    "{% endfor %}",
    "equal": "{% for m in messages %}{% if m.content == 'yes' %}Y{% endif %}{{ m.content }}|"
    "{% endfor %}",
    "part": "{% for m in messages %}{{ m.content[:3] }}{{ m.content }}|{% endfor %}",
    "twice": "{% for m in messages %}{{ m.content }}={{ m.content }}|{% endfor %}",
}
PIECES = [
    "yes",
    "</think>",
    "<think>",
    " ",
    "\n",
    "\u2003",
    "a",
    "Ü",
    "二",
    "</s>",
    "<tool_response>",
]
PIECES += ["\ue0f2", "\ue0f20Aa", "[/INST]", "{{ x }}", '"', "\\", "|"]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
ROLES = [
    ["user", "assistant"],
    ["system", "user", "assistant"],
    ["user", "assistant", "user", "assistant"],
    ["system"],
]


@pytest.fixture(scope="module")
def chat_tokenizer(pico_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(pico_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": MARKS})
    return tokenizer


def same(renderer: Renderer, roles: list[str], contents: list[str]) -> None:
    document = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]

    def slow() -> Prepared | None:
        try:
            return renderer._prepare_chat(document)
        except DataError:
            return None

    try:
        quick = renderer.prepare(document)
    except DataError:
        quick = None
    assert quick == slow()


@pytest.mark.parametrize(
    "template", [*BUILT_IN, *PECULIAR.values(), *(text for text, _ in ANY.values())]
)
@settings(max_examples=40, deadline=None)
@given(contents=st.lists(CONTENT, min_size=4, max_size=4), roles=st.sampled_from(ROLES))
def test_filled_equals_rendered(
    chat_tokenizer: PreTrainedTokenizerBase, template: str, contents: list[str], roles: list[str]
) -> None:
    same(
        Renderer(chat_tokenizer, DataConfig(chat_template=template, special_tokens_in_text=True)),
        roles,
        contents,
    )


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENT, min_size=4, max_size=4), roles=st.sampled_from(ROLES))
def test_filled_equals_rendered_by_a_real_template(
    shared_data: Path, contents: list[str], roles: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind6400")
    same(Renderer(tokenizer, DataConfig(special_tokens_in_text=True)), roles, contents)


def quick(tokenizer: PreTrainedTokenizerBase, template: str | None) -> bool:
    renderer = Renderer(tokenizer, DataConfig(chat_template=template))
    document = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    return renderer._fill_skeleton(document) is not None


def test_usual_templates_are_quick(
    chat_tokenizer: PreTrainedTokenizerBase, shared_data: Path
) -> None:
    minimind = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind6400")
    assert quick(minimind, None)
    slow = [name for name in BUILT_IN if not quick(chat_tokenizer, name)]
    assert slow == []


def test_templates_that_look_closely_are_not(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    found = {name for name, text in PECULIAR.items() if not quick(chat_tokenizer, text)}
    assert found >= {"length", "capitals", "json", "joined", "equal", "part"}
    assert not found & {"strips", "filter", "left", "empty", "holds", "tilde"}
