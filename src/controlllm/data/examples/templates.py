"""Chat templates: the tokenizer's own, one of ours by name, a file, or a text."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry

__all__ = ["TEMPLATES", "is_template_file", "resolve_chat_template"]

TEMPLATES: Registry[Callable[[PreTrainedTokenizerBase], str]] = Registry("chat_template")
"""Built-in templates: tokenizer -> Jinja text, with `{% generation %}` marks around answers."""


def resolve_chat_template(template: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The Jinja text to render with.

    A tokenizer saved with a trained model should carry it as its `chat_template`.

    Args:
        template: None for the tokenizer's own (`plain` if it has none), a name in `TEMPLATES`, a
            `.jinja` file, or a Jinja text.
        tokenizer: decides whether `plain` starts with BOS.

    Raises:
        ConfigError: the name is unknown or the file is missing.
    """
    if template is None:
        own = tokenizer.get_chat_template() if tokenizer.chat_template else None
        return own or TEMPLATES.get("plain")(tokenizer)
    if "{%" in template or "{{" in template:
        return template
    if is_template_file(template):
        try:
            return Path(template).expanduser().read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"chat_template={template!r} cannot be read ({error}).") from error
    return TEMPLATES.get(template)(tokenizer)


def is_template_file(template: str | None) -> bool:
    """Whether `chat_template` names a file, and is neither a name nor a Jinja text."""
    if template is None or "{%" in template or "{{" in template:
        return False
    return template.endswith((".jinja", ".jinja2", ".txt"))


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """`{{ bos_token }}` if the tokenizer begins texts with it; some name a BOS they never use."""
    ids = tokenizer("a").input_ids
    return "{{ bos_token }}" if ids and ids[0] == tokenizer.bos_token_id else ""


def _need(name: str, tokenizer: PreTrainedTokenizerBase, *tokens: str | None) -> None:
    """Refuse a tokenizer that would cut a template's marks into pieces.

    Raises:
        ConfigError: a token is None or not in the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in tokens if token not in vocabulary]:
        raise ConfigError(
            f"chat_template={name!r} needs {missing} in the tokenizer; use 'plain', or leave "
            "chat_template out to use the tokenizer's own."
        )


def _need_bos_and_eos(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.bos_token is None or tokenizer.eos_token is None:
        raise ConfigError(
            f"chat_template={name!r} needs a tokenizer with a bos_token and an eos_token "
            f"(this one has {tokenizer.bos_token!r} and {tokenizer.eos_token!r}); use 'plain'."
        )


# None of these templates has a notation for tool calls; dropping them would train on nothing.
_NO_TOOL_CALLS = (
    "{% for message in messages %}{% if message.tool_calls %}"
    "{{ raise_exception('this template cannot write tool_calls; use one of the tokenizer') }}"
    "{% endif %}{% endfor %}"
)

# Sets `system` ('' if there is none) and `turns` (the messages after it).
_SPLIT_SYSTEM = (
    "{% if messages and messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)

_ALTERNATING = (
    "{% if not turns %}{{ raise_exception('there is no user message') }}{% endif %}"
    "{% for message in turns %}"
    "{% if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('after at most one system message, user and assistant must alternate; '"
    " + 'turn ' ~ loop.index0 ~ ' is of ' ~ message.role) }}"
    "{% endif %}{% endfor %}"
)


@TEMPLATES.register("plain")
def _plain(tokenizer: PreTrainedTokenizerBase) -> str:
    """Headings in plain words, for tokenizers without chat tokens; an answer ends with EOS."""
    return (
        _NO_TOOL_CALLS
        + _bos(tokenizer)
        + (
            "{% for message in messages %}"
            "{{ '### ' + message.role | capitalize + ':\\n' }}"
            "{% if message.role == 'assistant' %}"
            "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
            "{% else %}{{ message.content }}{% endif %}"
            "{{ '\\n\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
        )
    )


@TEMPLATES.register("chatml")
def _chatml(tokenizer: PreTrainedTokenizerBase) -> str:
    """`<|im_start|>role ... <|im_end|>`; the tokenizer must know the two as tokens.

    No BOS. A model that is to stop after an answer needs `<|im_end|>` among its EOS ids.
    """
    _need("chatml", tokenizer, "<|im_start|>", "<|im_end|>")
    return _NO_TOOL_CALLS + (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
        "{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


@TEMPLATES.register("llama2")
def _llama2(tokenizer: PreTrainedTokenizerBase) -> str:
    """Llama 2 chat: `<s>[INST] question [/INST] answer </s>`, BOS and EOS around every turn.

    The system message stands inside the first question, between `<<SYS>>` marks. White space around
    contents is cut, as Meta's code does. The answer begins with the space after `[/INST]`.
    """
    _need_bos_and_eos("llama2", tokenizer)
    return (
        _NO_TOOL_CALLS
        + _SPLIT_SYSTEM
        + _ALTERNATING
        + (
            "{% for message in turns %}"
            "{% if message.role == 'user' %}{{ bos_token + '[INST] ' }}"
            "{% if loop.first and system %}"
            "{{ ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message.content) | trim }}"
            "{% else %}{{ message.content | trim }}{% endif %}{{ ' [/INST]' }}"
            "{% else %}"
            "{% generation %}{{ ' ' + message.content | trim + ' ' + eos_token }}"
            "{% endgeneration %}{% endif %}{% endfor %}"
        )
    )


@TEMPLATES.register("llama3")
def _llama3(tokenizer: PreTrainedTokenizerBase) -> str:
    """Llama 3 to 3.3: `<|start_header_id|>role<|end_header_id|>`, content, `<|eot_id|>`.

    One `<|begin_of_text|>` first. White space around contents is cut, as Meta's first release does;
    tool messages are of role `ipython`. No date or default system message is added (templates of
    later releases do). A base model's EOS is another token: to stop after an answer, generation
    needs `<|eot_id|>` among its EOS ids.
    """
    needed = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    _need("llama3", tokenizer, *needed)
    return _NO_TOOL_CALLS + (
        "{{ '<|begin_of_text|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' }}"
        "{{ 'ipython' if message.role == 'tool' else message.role }}"
        "{{ '<|end_header_id|>\\n\\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}"
        "{% else %}{{ message.content | trim + '<|eot_id|>' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    )


@TEMPLATES.register("mistral")
def _mistral(tokenizer: PreTrainedTokenizerBase) -> str:
    """Mistral's third tokenizer (7B-Instruct-v0.3): `[INST]` and `[/INST]` are tokens.

    One BOS first; an answer begins with a space and ends with EOS, with nothing after it. The
    system message stands before the *last* question, as `mistral-common` puts it, so earlier
    answers are learned without it.
    """
    _need_bos_and_eos("mistral", tokenizer)
    _need("mistral", tokenizer, "[INST]", "[/INST]")
    return (
        _NO_TOOL_CALLS
        + _SPLIT_SYSTEM
        + _ALTERNATING
        + (
            "{% set last = (turns | length - 1) // 2 * 2 %}"
            "{{ bos_token }}{% for message in turns %}"
            "{% if message.role == 'user' %}{{ '[INST] ' }}"
            "{% if loop.index0 == last and system %}{{ system + '\\n\\n' }}{% endif %}"
            "{{ message.content + '[/INST]' }}"
            "{% else %}"
            "{% generation %}{{ ' ' + message.content.rstrip() + eos_token }}{% endgeneration %}"
            "{% endif %}{% endfor %}"
        )
    )


@TEMPLATES.register("alpaca")
def _alpaca(tokenizer: PreTrainedTokenizerBase) -> str:
    """Stanford Alpaca's prompt without input: an introduction, the instruction, the response.

    A system message takes the place of the introduction. The answer follows `### Response:` at
    once and ends with EOS. Later turns, which Alpaca never had, go on with the two headings. BOS
    stands first if the tokenizer begins texts with it.
    """
    _need("alpaca", tokenizer, tokenizer.eos_token)
    return (
        _NO_TOOL_CALLS
        + _SPLIT_SYSTEM
        + _ALTERNATING
        + _bos(tokenizer)
        + (
            "{{ system or 'Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.' }}"
            "{% for message in turns %}"
            "{% if message.role == 'user' %}"
            "{{ '\\n\\n### Instruction:\\n' + message.content + '\\n\\n### Response:' }}"
            "{% else %}"
            "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
            "{% endif %}{% endfor %}"
        )
    )
