"""Chat templates: the tokenizer's own, one of ours by name, a file, or a text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TEMPLATES", "is_template_file", "resolve_chat_template"]

TEMPLATES: Registry[Callable[["PreTrainedTokenizerBase"], str]] = Registry("chat_template")
"""Built-in templates: tokenizer -> Jinja text, with `{% generation %}` marks around answers."""


def resolve_chat_template(template: str | None, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The Jinja text to render with.

    A tokenizer saved with a trained model should carry it as its `chat_template`. The template may
    be None for the tokenizer's own (`plain` if it has none), a name in `TEMPLATES`, a `.jinja`
    file, or a Jinja text.

    Raises:
        ConfigError: the name is unknown or the file is missing.
    """
    if template is None:
        own = tokenizer.get_chat_template() if tokenizer.chat_template else None
        return own or TEMPLATES.get("plain")(tokenizer)
    if _is_text(template):
        return template
    if is_template_file(template):
        try:
            return Path(template).expanduser().read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"chat_template={template!r} cannot be read ({error}).") from error
    return TEMPLATES.get(template)(tokenizer)


def is_template_file(template: str | None) -> bool:
    """Whether `chat_template` names a file, and is neither a name nor a Jinja text."""
    endings = (".jinja", ".jinja2", ".txt")
    return template is not None and template.endswith(endings) and not _is_text(template)


def _is_text(template: str) -> bool:
    return "{%" in template or "{{" in template


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


def _add(name: str, text: str, needs: Sequence[str] = (), begins: bool = False) -> None:
    """Register a template, a text in Jinja.

    It `needs` tokens, or attributes that are tokens, without which its marks would be cut up; BOS
    stands first where it `begins` with it, if the tokenizer begins texts so.
    """

    def make(tokenizer: "PreTrainedTokenizerBase") -> str:
        vocabulary = tokenizer.get_vocab()
        if missing := [n for n in needs if getattr(tokenizer, n, n) not in vocabulary]:
            raise ConfigError(
                f"chat_template={name!r} needs {missing} in the tokenizer; use 'plain', or leave "
                "chat_template out to use the tokenizer's own."
            )
        # Some tokenizers name a BOS that they never use.
        has_bos = begins and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        return _NO_TOOL_CALLS + ("{{ bos_token }}" if has_bos else "") + text

    TEMPLATES.register(name)(make)


# Headings in plain words, for tokenizers without chat tokens; an answer ends with EOS.
_add(
    "plain",
    "{% for message in messages %}"
    "{{ '### ' + message.role | capitalize + ':\\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}"
    "{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}",
    begins=True,
)

# The tokenizer must know the two marks as tokens. No BOS. A model that is to stop after an answer
# needs `<|im_end|>` among its EOS ids.
_add(
    "chatml",
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    needs=("<|im_start|>", "<|im_end|>"),
)

# Llama 2 chat: BOS and EOS around every turn. The system message stands inside the first question.
# White space around contents is cut, as Meta's code does. The answer begins with the space after
# `[/INST]`.
_add(
    "llama2",
    _SPLIT_SYSTEM + _ALTERNATING + "{% for message in turns %}"
    "{% if message.role == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}"
    "{{ ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message.content) | trim }}"
    "{% else %}{{ message.content | trim }}{% endif %}{{ ' [/INST]' }}"
    "{% else %}"
    "{% generation %}{{ ' ' + message.content | trim + ' ' + eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}",
    needs=("bos_token", "eos_token"),
)

# Llama 3 to 3.3. White space around contents is cut, as Meta's first release does; tool messages
# are of role `ipython`. No date or default system message is added (templates of later releases
# do). A base model's EOS is another token: to stop after an answer, generation needs `<|eot_id|>`.
_add(
    "llama3",
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
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    needs=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)

# Mistral's third tokenizer (7B-Instruct-v0.3). One BOS first; an answer begins with a space and
# ends with EOS, with nothing after it. The system message stands before the *last* question, as
# `mistral-common` puts it, so earlier answers are learned without it.
_add(
    "mistral",
    _SPLIT_SYSTEM + _ALTERNATING + "{% set last = (turns | length - 1) // 2 * 2 %}"
    "{{ bos_token }}{% for message in turns %}"
    "{% if message.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.index0 == last and system %}{{ system + '\\n\\n' }}{% endif %}"
    "{{ message.content + '[/INST]' }}"
    "{% else %}"
    "{% generation %}{{ ' ' + message.content.rstrip() + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}",
    needs=("bos_token", "eos_token", "[INST]", "[/INST]"),
)

# Stanford Alpaca's prompt without input. A system message takes the place of the introduction. The
# answer follows `### Response:` at once and ends with EOS. Later turns, which Alpaca never had, go
# on with the two headings.
_add(
    "alpaca",
    _SPLIT_SYSTEM + _ALTERNATING + "{{ system or 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.' }}"
    "{% for message in turns %}"
    "{% if message.role == 'user' %}"
    "{{ '\\n\\n### Instruction:\\n' + message.content + '\\n\\n### Response:' }}"
    "{% else %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}",
    needs=("eos_token",),
    begins=True,
)
