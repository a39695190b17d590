"""The contract of a form in which a model leaves, and the registry of all of them.

@FORMS.register("mine")
@dataclass
class Mine(Form):
    '''One sentence.'''

    level: int = setting(3, at_least=1)  # an option that only this form reads

    def write(self, model, folder, tokenizer, inplace): ...
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from controlllm.common.errors import ModelError
from controlllm.common.facts import check_values
from controlllm.common.registry import Registry
from controlllm.common.settings import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

__all__ = ["FORMS", "OUTTYPE", "RANK", "Form", "expanded", "make_form", "rules_of_forms"]

OUTTYPE, RANK = "auto", 64
"""What the forms gguf and lora take where nothing is said; here, as their code imports torch."""


@dataclass
class Form(ABC):
    """One way to write a model; its fields are the options that it reads.

    Attributes:
        has_dial: whether the alpha of the model changes what is written.
        trained_only: whether the weights of the base stay away.
        tokenizer_beside: whether a tokenizer is saved beside what was written.
        told: what `write` found worth telling, line by line.
    """

    has_dial: ClassVar[bool] = True
    trained_only: ClassVar[bool] = False
    tokenizer_beside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options by the facts of their fields (ConfigError)."""
        self.told: list[str] = []
        check_values(self, "")

    @abstractmethod
    def write(
        self,
        model: "PreTrainedModel",
        folder: Path,
        tokenizer: "PreTrainedTokenizerBase | None",
        inplace: bool,
    ) -> None:
        """Write the model into an existing empty folder.

        Args:
            model: expanded, plain, or with adapters.
            folder: where to; what is written there appears when all went well.
            tokenizer: the model's; is saved beside it by the caller if `tokenizer_beside`.
            inplace: whether the model may be used up.

        Raises:
            ModelError: the model has no such form.
        """


FORMS: Registry[type[Form]] = Registry(
    "form",
    reserved=("adapter", "collapsed", "full", "gguf", "lora", "sidecar", "unrolled"),
    home="controlllm.checkpoint.models.export.writing",
)
"""Every form by its name."""


def make_form(name: str, options: Mapping[str, Any] | None = None) -> Form:
    """The form of that name, with those of the options that it reads (ConfigError)."""
    cls = FORMS.get(name)
    options = options or {}
    return cls(**{one.name: options[one.name] for one in fields(cls) if one.name in options})


def rules_of_forms() -> Iterator[Rule]:
    """When the options of all forms, and alpha, are read, for options with a field `form`."""
    forms = {name: FORMS.get(name) for name in FORMS.names()}
    for option in {one.name: None for form in forms.values() for one in fields(form)}:
        readers = [n for n, form in forms.items() if option in {one.name for one in fields(form)}]
        named = " and ".join(f"form={name}" for name in readers)
        yield Rule(option, _is_one_of(readers), f"only {named} reads it")
    turned = [name for name, form in forms.items() if form.has_dial]
    yield Rule("alpha", _is_one_of(turned), "what this form writes has no dial")


def _is_one_of(names: Collection[str]) -> Callable[[Any], bool]:
    """Whether options ask for one of these forms."""
    return lambda options: options.form in names


def expanded(model: "PreTrainedModel", form: str) -> "ControlLLMForCausalLM":
    """The model, if it is expanded, and once (ModelError)."""
    from controlllm.expansion.hub.modeling import ControlLLMForCausalLM

    if not isinstance(model, ControlLLMForCausalLM):
        raise ModelError(
            f"form={form!r} needs an expanded model, and {type(model).__name__} is none; "
            "export it in the form 'full'."
        )
    if model.sidecars:
        raise ModelError(
            f"form={form!r} is of one sidecar, and this base has several by name "
            f"({', '.join(model.sidecars)}): load the one that is meant by load_sidecar."
        )
    return model
