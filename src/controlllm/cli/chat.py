"""`controlllm chat`: talk with a model; works in a terminal and in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controlllm.checkpoint import LoadOptions
from controlllm.cli.kit.parsing import parse_options
from controlllm.common.text.progress import stage
from controlllm.common.text.secrets import hidden
from controlllm.evaluate.forgetting.alphas import check_settings
from controlllm.inference import GenerationSettings
from controlllm.inference.serve.settings import ServeLimits
from controlllm.inference.serve.templates import TemplateProcess

if TYPE_CHECKING:
    from controlllm.inference import Chat

__all__ = ["ChatOptions", "run"]


@dataclass
class ChatOptions:
    """Talk with a model.

    On a terminal, lines that begin with / are commands (/help shows them). Lines that are piped in
    are said to the model, whatever they are.
    """

    model: str
    """Run folder, checkpoint, sidecar, model folder or Hub name."""
    sidecars: dict[str, str] = field(default_factory=dict)
    """Several sidecars on the base that MODEL is: --sidecars.maths FOLDER --sidecars.zh FOLDER;
    the first answers until /sidecar names another. A name on the Hub may have its revision behind
    an @."""
    alpha: float | None = None
    """Alpha to begin with; null = as it was saved."""
    system: str | None = None
    """System message."""
    chat_template: str | None = None
    """plain, chatml, a Jinja file or text; none = no chat, the text is simply continued;
    null = the one saved with the model, or none."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """How text is sampled."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check alpha (ConfigError)."""
        check_settings("alpha", [self.alpha])


def run(argv: list[str]) -> None:
    """Load the model and answer standard input until it ends."""
    options = parse_options(ChatOptions, argv, "chat")
    from controlllm.checkpoint import load_named
    from controlllm.data import resolve_chat_template
    from controlllm.inference import Chat

    with stage(f"loading {options.model}"):
        model, tokenizer, _ = load_named(options.model, options.sidecars, options.load)
    if options.chat_template == "none":
        tokenizer.chat_template = None
    elif options.chat_template is not None:
        tokenizer.chat_template = resolve_chat_template(options.chat_template, tokenizer)
    with _renderer(tokenizer) as render:
        chat = Chat(model, tokenizer, options.generation, system=options.system, render=render)
        if options.alpha is not None:
            chat.set_alpha(options.alpha)
        _talk(chat, options.model)


@contextmanager
def _renderer(tokenizer: Any) -> Iterator[Callable[..., str] | None]:
    """Renders by the model's chat template, a stranger's program, in a process of its own."""
    if not tokenizer.chat_template:
        yield None
        return
    process = TemplateProcess(tokenizer, ServeLimits())
    try:
        yield process.render
    finally:
        process.close()


def _talk(chat: "Chat", name: str) -> None:
    if sys.stdin.isatty() and sys.stdout.isatty():
        model = f"{type(chat.model).__name__} from {hidden(name)}"
        print(f"{model}; /help for commands, Ctrl-D to end.")
        chat.run(_typed_lines(), interactive=True)
    else:
        chat.run(sys.stdin)


def _typed_lines() -> Iterator[str]:
    """Lines from a terminal, with editing and history."""
    import readline  # noqa: F401 - input() uses it once it is imported

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
