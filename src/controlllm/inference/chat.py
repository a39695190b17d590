"""A conversation in the terminal, with the dial at hand: alpha can change between two turns."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from controlllm.common.adapters import as_base, carries_base
from controlllm.common.errors import ConfigError, ControlLLMError, ModelError
from controlllm.common.registry import check_choice
from controlllm.common.text.readable import readable
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.inference.generate import Generator, prompt_ids
from controlllm.inference.settings import GenerationSettings
from controlllm.inference.side_by_side import answer_both

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Chat"]

HELP = """\
/alpha 0.3   answer with this alpha: 0 = the base, 1 = the expanded branch (or its token gates as
             they were trained), trained = as trained; maths=0.3 zh=0.2 blends several sidecars
/sidecar maths   answer with this one of several sidecars; alone: which there are
/base        answer with the base model alone, until the next /alpha or /trained
/trained     answer with the trained model again
/compare TEXT    base and tuned model answer it, one after the other, and where they part;
             alone: what was said last. The conversation stays as it is
/reset       forget the conversation
/save FILE   write the conversation to a new .jsonl file as one line, ready to train on
/help        this list
/quit        end (as Ctrl-D)
"""


class Chat:
    """The core of `controlllm chat`: keeps the conversation, answers lines, obeys `/commands`.

    The conversation outlives a change of alpha; the KV cache does not, because its keys and values
    were computed with the old alpha.

    Args:
        model: the model that answers.
        tokenizer: its tokenizer; its chat template is used where it has one.
        settings: how to sample.
        write: where text goes, piece by piece; without anything that would steer a terminal.
        system: a system message to begin every conversation with.
        render: renders conversations in the chat template's place, as in `prompt_ids`.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        settings: GenerationSettings | None = None,
        write: Callable[[str], None] = lambda text: print(text, end="", flush=True),
        system: str | None = None,
        render: Callable[[Sequence[Mapping[str, Any]]], str] | None = None,
    ) -> None:
        self.model = model
        self.sidecars: tuple[str, ...] = getattr(model, "sidecars", ())
        self.render = render
        self.generator = Generator(model, tokenizer, settings)
        self.write = lambda text: write(readable(text))
        self.opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.opening)
        self.base_only = False
        self.dials: dict[str, Any] = {}
        self._on: tuple[str, ...] = ()
        if self.sidecars:  # Several may be all off.
            named: Any = model
            self.dials = {name: one.dial for name, one in named.expansions.items()}
            self.choose(named.usual)
        self._saved: dict[Path, TextIO] = {}  # Open, so that no other file can pass for them.
        self._commands: dict[str, Callable[[str], None]] = {
            "/alpha": self._alpha,
            "/base": self._base,
            "/trained": lambda argument: self._answer_as(False, "The trained model answers.\n"),
            "/sidecar": self._sidecar,
            "/compare": self._compare,
            "/reset": self._reset,
            "/save": self._save,
            "/help": lambda argument: self.write(HELP),
        }

    def run(self, lines: Iterable[str], interactive: bool = False) -> None:
        """Answer line after line until they end or `/quit`; empty lines are passed over.

        Args:
            lines: what the user says.
            interactive: whether a person types them: only then lines that begin with / are
                commands, and Ctrl-C ends only the answer that is being written.
        """
        take = self.handle if interactive else self._answer_line
        for line in lines:
            try:
                if not take(line.rstrip("\r\n")):
                    return
            except KeyboardInterrupt:
                if not interactive:
                    raise
                self.write("\n(interrupted; this turn is forgotten)\n")

    def handle(self, line: str) -> bool:
        """Answer one line, or obey a command; whether the conversation goes on."""
        name, _, argument = line.strip().partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if not name.startswith("/"):
            return self._answer_line(line)
        if name not in self._commands:
            self.write(f"{name} is not a command.\n{HELP}")
            return True
        return self._tried(lambda: self._commands[name](argument.strip()))

    def _answer_line(self, line: str) -> bool:
        """Answer a line, whatever it is: the conversation goes on."""
        return self._tried(lambda: self.answer(line)) if line.strip() else True

    def _tried(self, do: Callable[[], object]) -> bool:
        """Do it, and write what went wrong."""
        try:
            do()
        except ControlLLMError as error:
            self.write(f"{error}\n")
        return True

    def answer(self, text: str) -> str:
        """Add a user turn, stream the model's answer, and add it to the conversation.

        If the answer is interrupted (Ctrl-C), the conversation is as it was before the turn.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = prompt_ids(self.generator.tokenizer, messages, self.render)
        with as_base(self.model) if self.base_only else nullcontext():
            reply = self.generator.write(ids, self.write)
        self.write("\n")
        self.messages = [*messages, {"role": "assistant", "content": reply}]
        return reply

    def compare(self, text: str | None = None) -> None:
        """Let base and tuned model answer a text, or what was said last; nothing of it is kept.

        Raises:
            ModelError: the model carries no base.
            ConfigError: nothing was said yet.
        """
        if text is None:
            messages = self._until_last_question()
        else:
            messages = [*self.messages, {"role": "user", "content": text}]
        ids = prompt_ids(self.generator.tokenizer, messages, self.render)
        answer_both(self.generator, ids, messages, self.write)

    def _until_last_question(self) -> list[dict[str, str]]:
        said = [place for place, turn in enumerate(self.messages) if turn["role"] == "user"]
        if not said:
            raise ConfigError("/compare: nothing was said yet; give a text: /compare TEXT")
        return self.messages[: said[-1] + 1]

    def set_alpha(self, alpha: float | Mapping[str, float | None] | None) -> None:
        """Answer with this alpha from now on; None = as trained.

        Args:
            alpha: one number; with several sidecars it is that of those that are on. Or one per
                sidecar, to blend them.

        Raises:
            ConfigError: it is outside [0, 1], or there is no such sidecar.
            ModelError: the model has no expansion.
        """
        model = self._expanded()
        if not self.sidecars:
            model.set_alpha(alpha)  # type: ignore[arg-type]  # a name is refused there
        elif isinstance(alpha, Mapping):
            self._turn(alpha)
        else:
            self._turn(dict.fromkeys(self._on, alpha))
        self.base_only = False
        self.generator.forget()

    def _turn(self, alphas: Any) -> None:
        """Turn the dials of several sidecars, and know which are on.

        One alone stands on those beside which it was trained, at their dials.
        """
        model: Any = self._expanded()
        beneath = (
            model.beneath(*alphas) if len(alphas) == 1 and {*alphas} <= {*self.sidecars} else {}
        )
        model.stand_at(beneath | alphas)
        self._on = tuple(alphas)

    def _sidecar(self, argument: str) -> None:
        if not self.sidecars:
            raise ModelError(
                "This model has no named sidecars; give several when you start: "
                "controlllm chat BASE --sidecars.maths FOLDER --sidecars.zh FOLDER"
            )
        if argument:
            self.choose(argument)
        names = (f"{name} (answers)" if name in self._on else name for name in self.sidecars)
        self.write(f"sidecars: {', '.join(names)}\n")

    def choose(self, sidecar: str) -> None:
        """Answer with this one of several sidecars, at its dial in `dials`, else as trained.

        Raises:
            ConfigError: there is no such sidecar.
        """
        check_choice("sidecar", sidecar, self.sidecars)
        self._turn({sidecar: self.dials.get(sidecar)})
        self.base_only = False
        self.generator.forget()

    def _compare(self, argument: str) -> None:
        self.compare(argument or None)

    def _alpha(self, argument: str) -> None:
        model = self._expanded()
        if argument:
            self.set_alpha(_alphas(argument))
        if self.base_only:
            self.write("The base answers, whatever alpha is; /trained takes these in again.\n")
        values = model.alphas()
        shown = "  ".join(f"{layer}: {alpha:.3g}" for layer, alpha in values.items())
        self.write(f"alpha by layer: {shown}\n")

    def _base(self, argument: str) -> None:
        if not carries_base(self.model):
            raise ModelError(
                "This model has no expansion and no adapters, so it cannot answer as its base."
            )
        self._answer_as(True, "The base model answers; /trained takes what was trained in again.\n")

    def _answer_as(self, base_only: bool, text: str) -> None:
        self.base_only = base_only
        self.generator.forget()
        self.write(text)

    def _reset(self, argument: str) -> None:
        self.messages = list(self.opening)
        self.generator.forget()
        self.write("The conversation starts afresh.\n")

    def _save(self, argument: str) -> None:
        if not argument:
            self.write("/save needs a file name.\n")
            return
        path = Path(argument)
        if path.suffix != ".jsonl":
            raise ConfigError(f"/save {path}: give a file whose name ends in .jsonl.")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False)
        try:
            self._append(path, f"{line}\n")
        except FileExistsError:
            raise ConfigError(f"{path} is there already; give the name of a new file.") from None
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}.") from error
        self.write(f"Saved {len(self.messages)} messages to {path}.\n")

    def _append(self, path: Path, line: str) -> None:
        """Write to a new file, or to one that this conversation made; never through a link."""
        file = self._saved.get(path)
        if file is None:
            self._saved[path] = file = path.open("x", encoding="utf-8")
        elif not os.path.samestat(os.lstat(path), os.fstat(file.fileno())):
            raise FileExistsError(path)
        file.write(line)
        file.flush()

    def _expanded(self) -> ControlLLMForCausalLM:
        if not isinstance(self.model, ControlLLMForCausalLM):
            raise ModelError("This model has no expansion, so it has no alpha to set.")
        return self.model


def _alphas(text: str) -> float | dict[str, float | None] | None:
    """What stands behind /alpha: a number or `trained`, or one of these per sidecar."""
    try:
        if "=" not in text:
            return _number(text)
        pairs = [part.split("=") for part in text.split()]
        alphas = {name: _number(value) for name, value in pairs}
    except ValueError:
        raise ModelError(
            f"/alpha {text}: give a number from 0 to 1, or 'trained'; or one per sidecar, as in "
            "/alpha maths=0.3 zh=0.2"
        ) from None
    if len(alphas) < len(pairs):
        raise ModelError(f"/alpha {text}: a sidecar is named twice; keep one of them.")
    return alphas


def _number(text: str) -> float | None:
    return None if text == "trained" else float(text)
