"""General chat, instruction and summary data sets, and web text, each chosen by its name."""

from controlllm.data.formats.base import register_format
from controlllm.data.formats.reading import Document, Row, read_messages, read_text, turn
from controlllm.data.formats.standard import preference, read_sharegpt

__all__ = [
    "magpie",
    "openhermes_2_5",
    "openorca",
    "redpajama",
    "samsum",
    "ultrachat_200k",
    "ultrafeedback",
]


@register_format("ultrachat_200k", reads=("messages",))
def ultrachat_200k(row: Row) -> Document:
    """`HuggingFaceH4/ultrachat_200k`, split `train_sft` (and `test_sft`, `train_gen`, `test_gen`).

    Columns: `messages` (role, content); `prompt` and `prompt_id` are not read: the first question
    is the first message.
    """
    return read_messages(row, "messages")


@register_format("ultrafeedback", reads=("chosen", "prompt"))
def ultrafeedback(row: Row) -> Document:
    """`HuggingFaceH4/ultrafeedback_binarized`, split `train_prefs` (and `train_sft`, `test_prefs`).

    Columns: `chosen` (role, content: the question and the better answer); `prompt`, `prompt_id`,
    `rejected`, `messages` and the scores are not read.
    """
    return preference(row)


@register_format("openorca", reads=("system_prompt", "question", "response"))
def openorca(row: Row) -> Document:
    """`Open-Orca/OpenOrca`, split `train`.

    Columns: `system_prompt` (may be empty), `question`, `response` (all text); `id` is not read.
    """
    system = read_text(row, "system_prompt", optional=True)
    return turn(read_text(row, "question"), read_text(row, "response"), system)


@register_format("openhermes_2_5", reads=("conversations",))
def openhermes_2_5(row: Row) -> Document:
    """`teknium/OpenHermes-2.5`, split `train`.

    Columns: `conversations` (from: system, human or gpt; value); the others, mostly null, are not
    read.
    """
    return read_sharegpt(row, "conversations")


@register_format("magpie", reads=("conversations",))
def magpie(row: Row) -> Document:
    """`Magpie-Align/Magpie-Pro-MT-300K-v0.1` and its siblings, split `train`.

    Columns: `conversations` (from: human or gpt; value); the single texts (`input1`, ...) and the
    ratings of some siblings are not read, but `where` can use them.
    """
    return read_sharegpt(row, "conversations")


@register_format("samsum", reads=("dialogue", "summary"))
def samsum(row: Row) -> Document:
    """`Samsung/samsum`, splits `train`, `validation`, `test`: short chats and their summaries.

    Columns: `dialogue`, `summary` (text); `id` is not read. The hub's own copy needs a loading
    script, which `datasets` no longer runs; take its JSON files, or a copy without a script.
    """
    question = "Summarize this dialogue:\n\n" + read_text(row, "dialogue")
    return turn(question, read_text(row, "summary"))


@register_format("redpajama", reads=("text",))
def redpajama(row: Row) -> Document:
    """`togethercomputer/RedPajama-Data-1T` and `RedPajama-Data-1T-Sample`, split `train`.

    Columns: `text`; `meta` and the subset's name are not read. The hub's own copy needs a loading
    script, which `datasets` no longer runs; give the paths of its JSON lines files.
    """
    return read_text(row, "text")
