"""The `Modelfile` that Ollama makes a model of: the file, the template in Go, stops.

Ollama does not run Jinja. The template is derived from what the model's own renders: the text
before each message by its role, and before the answer. If conversations put together from these
pieces are not exactly what the template renders, none is written, and Ollama looks the template up
in its own list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedTokenizerBase

from controlllm.checkpoint.models.export.chat_facts import chat_facts, render
from controlllm.common.errors import ModelError

__all__ = ["Pieces", "find_pieces", "modelfile"]

_SYSTEM, _USER, _ANSWER = "Zrules", "Zquestion", "Zanswer"


@dataclass(frozen=True)
class Pieces:
    """What stands before each message, and before the answer that is asked for."""

    first_system: str
    first_user: str
    user: str
    assistant: str
    answer: str

    def put_together(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation with a prompt for the answer, as the Go template gives it."""
        text = ""
        for index, message in enumerate(messages):
            before = {
                "system": self.first_system,
                "user": self.user if index else self.first_user,
                "assistant": self.assistant,
            }[message["role"]]
            text += before + message["content"]
        return text + self.answer

    def go(self) -> str:
        """The template in Go's language."""
        return (
            "{{ range $i, $m := .Messages }}"
            f'{{{{ if eq .Role "system" }}}}{self.first_system}'
            '{{ else if eq .Role "user" }}'
            f"{{{{ if eq $i 0 }}}}{self.first_user}{{{{ else }}}}{self.user}{{{{ end }}}}"
            f'{{{{ else if eq .Role "assistant" }}}}{self.assistant}{{{{ end }}}}'
            "{{ .Content }}{{ end }}"
            f"{self.answer}"
        )


def find_pieces(tokenizer: PreTrainedTokenizerBase) -> Pieces | None:
    """The pieces of a tokenizer's template; None where no such pieces give what it renders."""
    short, ruled = _talk("u"), _talk("suauau")
    try:
        with_rules = render(tokenizer, ruled, prompt=True)
        without = render(tokenizer, short, prompt=True)
        before, contents = [], [message["content"] for message in ruled]
        for content in contents:
            head, found, with_rules = with_rules.partition(content)
            if not found:
                return None
            before.append(head)
        first_user, found, _ = without.partition(short[0]["content"])
        pieces = Pieces(before[0], first_user, before[3], before[2], with_rules)
        for roles in ("u", "su", "uau", "uauau", "suau"):
            talk = _talk(roles)
            if pieces.put_together(talk) != render(tokenizer, talk, prompt=True):
                return None
    except ModelError:  # some templates allow no system message
        return None
    return pieces if _plain(pieces) else None


def _talk(roles: str) -> list[dict[str, str]]:
    """A conversation of these roles; each message is another text."""
    names = {"s": ("system", _SYSTEM), "u": ("user", _USER), "a": ("assistant", _ANSWER)}
    return [
        {"role": names[role][0], "content": f"{names[role][1]}{index}Z"}
        for index, role in enumerate(roles)
    ]


def _plain(pieces: Pieces) -> bool:
    """Whether no piece is an order in Go's language, or ends the text of a Modelfile."""
    orders = ("{{", "}}", '"""')
    return not any(order in piece for piece in vars(pieces).values() for order in orders)


def modelfile(
    gguf: str, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None
) -> str:
    """The text of a `Modelfile` for a GGUF file beside it.

    Sampling is what the model's generation config says; what it leaves open is Ollama's to choose.
    """
    lines = ["# ollama create NAME -f Modelfile", f"FROM ./{gguf}"]
    facts = chat_facts(tokenizer)
    if facts.has_template:
        pieces = find_pieces(tokenizer)
        if pieces is None:
            lines.append(
                "# The chat template is no chain of pieces: Ollama looks it up in its list."
            )
        else:
            lines.append(f'TEMPLATE """{pieces.go()}"""')
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    for stop in dict.fromkeys([facts.end_of_turn, tokenizer.eos_token]):
        if stop is not None and str(stop).isprintable() and '"' not in str(stop):
            lines.append(f'PARAMETER stop "{stop}"')
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(generation, name, None)
        if value is not None and getattr(generation, "do_sample", False):
            lines.append(f"PARAMETER {name} {value:g}")
    if generation is not None and generation.do_sample is False:
        lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"
