"""Chat templates: the tokenizer's own, one of ours by name, a file, or a text."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError
from controlllm.common.registry import Registry

__all__ = ["TEMPLATES", "resolve_chat_template"]

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
    if template.endswith((".jinja", ".jinja2", ".txt")):
        try:
            return Path(template).expanduser().read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"chat_template={template!r} cannot be read ({error}).") from error
    return TEMPLATES.get(template)(tokenizer)


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """`{{ bos_token }}` if the tokenizer begins texts with it; some name a BOS they never use."""
    ids = tokenizer("a").input_ids
    return "{{ bos_token }}" if ids and ids[0] == tokenizer.bos_token_id else ""


@TEMPLATES.register("plain")
def _plain(tokenizer: PreTrainedTokenizerBase) -> str:
    """Headings in plain words, for tokenizers without chat tokens; an answer ends with EOS."""
    return _bos(tokenizer) + (
        "{% for message in messages %}"
        "{{ '### ' + message.role | capitalize + ':\\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}"
        "{{ '\\n\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
    )


@TEMPLATES.register("chatml")
def _chatml(tokenizer: PreTrainedTokenizerBase) -> str:
    """`<|im_start|>role ... <|im_end|>`; the tokenizer should know the two as special tokens."""
    missing = [
        token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()
    ]
    if missing:
        raise ConfigError(f"chat_template='chatml' needs {missing} in the tokenizer; use 'plain'.")
    return (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
        "{{ '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
