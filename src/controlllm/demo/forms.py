"""Take the model away in all three forms; reload each, measure it, and let it write."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.checkpoint import export, load_model
from controlllm.common.storage.files import folder_bytes
from controlllm.demo.domains import NEW, OLD, HeldOut
from controlllm.demo.results import FormRow
from controlllm.evaluate import evaluate_losses
from controlllm.inference import GenerationSettings, Generator

__all__ = ["FORMS", "PROMPTS", "export_form", "write_texts"]

FORMS = ("sidecar", "full", "collapsed")
PROMPTS = {OLD: "This method is called when", NEW: "def __init__(self, "}
_SETTINGS = GenerationSettings(max_new_tokens=40)


def export_form(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    sets: HeldOut,
) -> FormRow:
    """Export the form that `folder` is named after, load it back and try it."""
    export(model, folder, folder.name, tokenizer, overwrite=True)
    reloaded, tokenizer = load_model(folder)
    return FormRow(
        form=folder.name,
        megabytes=folder_bytes(folder) / 1e6,
        old_loss=evaluate_losses(reloaded, sets.retain[OLD]).loss,
        new_loss=evaluate_losses(reloaded, sets.learn[NEW]).loss,
        texts=write_texts(reloaded, tokenizer),
    )


def write_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What the model writes after each prompt, always taking the likeliest token."""
    texts = {}
    for prompt in PROMPTS.values():
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        texts[prompt] = Generator(model, tokenizer, _SETTINGS).write(ids)
    return texts
