"""What a chat model's tokenizer says of turns: the facts that imports into other tools break on.

Found by rendering, not by reading the template: what stands before and after a message is what the
model was trained on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.errors import ModelError

__all__ = ["ChatFacts", "chat_facts", "eos_ids", "import_findings", "render"]

_USER, _ANSWER = "Zquestion", "Zanswer"


@dataclass(frozen=True)
class ChatFacts:
    """What rendering a conversation shows.

    Attributes:
        has_template: whether there is a chat template; without one all below is empty.
        end_of_turn: the special token that follows an answer; None where text or nothing does.
        writes_bos: whether the template begins a conversation with BOS.
        adds_bos: whether the tokenizer puts BOS before a text by itself.
    """

    has_template: bool
    end_of_turn: str | None
    writes_bos: bool
    adds_bos: bool


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], prompt: bool
) -> str:
    """A conversation as text, with the beginning of an answer if `prompt` (ModelError)."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template may raise whatever it likes
        raise ModelError(
            f"the chat template cannot render {[m['role'] for m in messages]}: {error}. Mend "
            "tokenizer.chat_template before exporting."
        ) from error
    return str(text)


def chat_facts(tokenizer: PreTrainedTokenizerBase) -> ChatFacts:
    """What the tokenizer says of turns (ModelError: its template renders no conversation)."""
    bos = str(tokenizer.bos_token) if tokenizer.bos_token is not None else None
    adds = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if not tokenizer.chat_template:
        return ChatFacts(False, None, False, adds)
    asked = {"role": "user", "content": _USER}
    text = render(tokenizer, [asked, {"role": "assistant", "content": _ANSWER}], prompt=False)
    if _USER not in text or _ANSWER not in text:
        raise ModelError(
            "the chat template leaves out what was said, so no tool can chat with this model. "
            "Mend tokenizer.chat_template before exporting."
        )
    render(tokenizer, [asked], prompt=True)
    after = text.partition(_ANSWER)[2].lstrip()
    special = {str(token) for token in tokenizer.all_special_tokens}
    special |= set(tokenizer.get_added_vocab())
    ends = [token for token in special if after.startswith(token)]
    writes = bos is not None and text.startswith(bos)
    return ChatFacts(True, max(ends, key=len, default=None), writes, adds)


def eos_ids(value: Any) -> set[int]:
    """Ids of a config's `eos_token_id`, which may be None, one or several."""
    if value is None:
        return set()
    return {int(one) for one in (value if isinstance(value, Iterable) else [value])}


def import_findings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Mapping[str, Any]
) -> list[str]:
    """What an import of the file will meet, one line each for template, EOS and BOS.

    Args:
        model: the plain model, whose configs say when to stop.
        tokenizer: its tokenizer.
        file: metadata of the GGUF file, by their names there.

    Raises:
        ModelError: the file has lost the template, or ends texts by another token: it would talk
            nonsense without a word of warning.
    """
    facts = chat_facts(tokenizer)
    return [_template(facts, file), _eos(model, tokenizer, facts, file), _bos(facts, file)]


def _template(facts: ChatFacts, file: Mapping[str, Any]) -> str:
    written = bool(file.get("tokenizer.chat_template"))
    if not facts.has_template:
        return "template: none, so it completes texts and does not chat (no template is invented)"
    if not written:
        raise ModelError("the converter has lost the chat template: the file cannot chat.")
    return "template: there, and renders questions and answers"


def _eos(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: ChatFacts,
    file: Mapping[str, Any],
) -> str:
    stops = {
        "config": eos_ids(model.config.get_text_config(decoder=True).eos_token_id),
        "generation_config": eos_ids(getattr(model.generation_config, "eos_token_id", None)),
        "tokenizer": eos_ids(tokenizer.eos_token_id),
    }
    written = file.get("tokenizer.ggml.eos_token_id")
    known = set().union(*stops.values())
    if written is not None and known and written not in known:
        raise ModelError(
            f"the file ends texts by token {written}, and the model by {sorted(known)} ({stops})."
        )
    line = f"EOS: token {written} in the file"
    said = {name: ids for name, ids in stops.items() if ids}
    if len({frozenset(ids) for ids in said.values()}) > 1:
        line += f"; WARNING: {', '.join(f'{n} {sorted(ids)}' for n, ids in said.items())} disagree"
    if facts.end_of_turn is not None:
        id_ = tokenizer.convert_tokens_to_ids(facts.end_of_turn)
        line += f"; turns end by {facts.end_of_turn!r} ({id_}), a stop in the Modelfile"
        if id_ not in known:
            line += "; WARNING: which is no EOS of the model, so other tools may not stop there"
    elif facts.has_template:
        line += "; WARNING: no special token ends a turn in the template, so answers may not stop"
    return line


def _bos(facts: ChatFacts, file: Mapping[str, Any]) -> str:
    spm = file.get("tokenizer.ggml.model") == "llama"
    adds = bool(file.get("tokenizer.ggml.add_bos_token", spm))
    line = f"BOS: {'added' if adds else 'not added'} before texts by the file"
    if adds != facts.adds_bos:
        line += f"; WARNING: by the tokenizer it is {'added' if facts.adds_bos else 'not added'}"
    if not facts.has_template:
        return line
    if adds and facts.writes_bos:
        return line + (
            "; WARNING: the template writes it, too: tools that render and then tokenise must not "
            "add it a second time"
        )
    if adds:
        return line + "; WARNING: the template has none, so chats of transformers begin without it"
    return line + f"; chats begin {'with it, once' if facts.writes_bos else 'without it'}"
