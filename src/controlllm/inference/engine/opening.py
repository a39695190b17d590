"""From what a user names to an engine: the registry `ENGINES` says who computes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from controlllm.checkpoint import LoadOptions
from controlllm.common.registry import Registry
from controlllm.inference.engine.protocol import Engine
from controlllm.inference.engine.settings import EngineSettings

__all__ = ["ENGINES", "EngineSpec", "open_engine"]


@dataclass
class EngineSpec:
    """What an engine is to be made of.

    Attributes:
        model: a run, checkpoint, sidecar, model folder or Hub name.
        name: what an only sidecar is called.
        sidecars: several sidecars by name, as `load_named` takes them, on the base `model`.
        load: how it is loaded.
        chat_template: plain, chatml, a Jinja file or text; "none" = no chat; None = the model's.
        settings: how much the engine takes on.
    """

    model: str
    name: str = "tuned"
    sidecars: dict[str, str] = field(default_factory=dict)
    load: LoadOptions = field(default_factory=LoadOptions)
    chat_template: str | None = None
    settings: EngineSettings = field(default_factory=EngineSettings)


ENGINES: Registry[Callable[[EngineSpec], Engine]] = Registry("engine")
"""Who computes, by name."""


def open_engine(engine: str, spec: EngineSpec) -> Engine:
    """The engine of that name over a model.

    Raises:
        ConfigError: there is none of that name, or it cannot follow the spec.
        ControlLLMError: the model cannot be loaded.
    """
    return ENGINES.get(engine)(spec)


@ENGINES.register("local")
def _open_local(spec: EngineSpec) -> Engine:
    from controlllm.checkpoint import load_named
    from controlllm.data import resolve_chat_template
    from controlllm.inference.engine.local import LocalEngine

    model, tokenizer, saved = load_named(spec.model, spec.sidecars, spec.load)
    if spec.chat_template == "none":
        tokenizer.chat_template = None
    elif spec.chat_template is not None:
        tokenizer.chat_template = resolve_chat_template(spec.chat_template, tokenizer)
    return LocalEngine(model, tokenizer, spec.settings, spec.name, saved)
