"""An expanded model for mergekit: its expanded branch as a plain model, and a recipe of its alphas.

    python -m controlllm.integrations.mergekit runs/maths merge
    mergekit-yaml merge/merge.yaml merged

The `donor` is the model collapsed at alpha 1: the base's own class with the trained weights. A
merge of base and donor by `linear`, each block at its alpha, is what `controlllm export --form
collapsed` writes; in mergekit the alphas can be changed, and other methods and models join in.

Written for mergekit 0.1.5, which is not needed here; docs/integrations/mergekit.md shows merges.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from controlllm.checkpoint import LoadOptions, export, load_model, require_free
from controlllm.common.errors import ControlLLMError, ModelError
from controlllm.common.storage.files import write_text
from controlllm.expansion.files.fingerprint import base_name
from controlllm.expansion.hub.modeling import ControlLLMForCausalLM
from controlllm.expansion.merge.checks import require_alone
from controlllm.expansion.merge.collapsing import weight_alphas
from controlllm.expansion.method.interpolators import Slerp
from controlllm.expansion.method.registries import INTERPOLATORS

__all__ = ["main", "merge_recipe", "write_for_mergekit"]

HEADER = """\
# mergekit-yaml THIS_FILE OUTPUT
# Each block at the alpha of the expanded model. 0 is the base's weight, 1 the donor's; the two
# weights of a block add up to 1, and what no filter names is the base's.
"""


def write_for_mergekit(
    model: ControlLLMForCausalLM,
    folder: str | Path,
    base: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write `folder/donor`, a plain model, and `folder/merge.yaml`, which merges it at its alphas.

    Args:
        model: the expanded model; not changed.
        folder: where to; absent or empty.
        base: what mergekit shall call the base; None = the recorded name or path.
        tokenizer: is saved beside the donor.

    Returns:
        The recipe.

    Raises:
        CheckpointError: if the folder is not empty or cannot be written.
        ModelError: if the model has no such form (see `merge_recipe`).
    """
    base = base or model.config.base.get("name_or_path")
    if not base:
        raise ModelError("this model does not record the name of its base; give it as `base`.")
    require_free(folder)
    donor = Path(folder).absolute() / "donor"
    recipe = merge_recipe(model, base, str(donor))
    with _at_alpha_one(model):
        export(model, donor, "collapsed", tokenizer)
    path = Path(folder) / "merge.yaml"
    write_text(path, HEADER + yaml.safe_dump(recipe, sort_keys=False))
    return path


def merge_recipe(model: ControlLLMForCausalLM, base: str, donor: str) -> dict[str, Any]:
    """A mergekit config by which base and donor, the model at alpha 1, make the collapsed model.

    Raises:
        ModelError: if its weights are no linear mix of the two (slerp, moe, prog, proj), a token
            gate's mean alpha was never measured, or it has added tokens, which the base lacks.
    """
    require_alone(model)
    interpolator = INTERPOLATORS.get(model.expansion.interpolator)
    linear = interpolator.collapsible and not issubclass(interpolator, Slerp)
    if not linear and model.expansion.structure != "stack":
        raise ModelError(
            f"interpolator={model.expansion.interpolator!r} does not mix weights linearly, as "
            "mergekit would. Merge the folder of `controlllm export --form collapsed`, where "
            "there is one."
        )
    if model.config.base.get("grown_vocab_size"):
        raise ModelError(
            "This model has added tokens, and mergekit cannot mix vocabularies of two sizes by "
            "weight. Merge the folder of `controlllm export --form collapsed` with its "
            "tokenizer options."
        )
    alphas = _alphas(model)
    # Conditional weights: the first filter that is part of a tensor's name counts.
    theirs = [{"filter": name, "value": 1 - alpha} for name, alpha in alphas.items()]
    ours = [{"filter": name, "value": alpha} for name, alpha in alphas.items()]
    return {
        "merge_method": "linear",
        "models": [
            {"model": base, "parameters": {"weight": [*theirs, {"value": 1.0}]}},
            {"model": donor, "parameters": {"weight": [*ours, {"value": 0.0}]}},
        ],
        "parameters": {"normalize": False},
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _alphas(model: ControlLLMForCausalLM) -> dict[str, float]:
    """Alpha by the beginning of the names that the base's tensors have."""
    names = {id(module): name for name, module in model.named_modules()}
    alphas = {
        f"{base_name(names[id(model.blocks[layer])])}.": alpha
        for layer, alpha in weight_alphas(model.blocks, model.expansion).items()
    }
    for end in model._expansion.ends.values():
        # Ends are joined by a constant; joining 0 and 1 tells which.
        alpha = end.join(torch.zeros(1), torch.ones(1))
        alphas[f"{base_name(names[id(end)])}."] = alpha.item()
    return alphas


@contextmanager
def _at_alpha_one(model: ControlLLMForCausalLM) -> Iterator[None]:
    """Inside, each block collapses to its copy, gates included; then the dial is where it was."""
    before = model.expansion
    model.set_alpha(1.0)
    model.config.expansion["mean_alpha"] = dict.fromkeys(model.blocks, 1.0)
    try:
        yield
    finally:
        model.stand_at(before.dial)
        model.config.expansion["mean_alpha"] = before.mean_alpha


def main(argv: list[str] | None = None) -> int:
    """Run `python -m controlllm.integrations.mergekit`; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m controlllm.integrations.mergekit",
        description="Write an expanded model's donor and mergekit recipe.",
    )
    parser.add_argument("model", help="run folder, checkpoint, sidecar or expanded model")
    parser.add_argument("folder", help="where to write; absent or empty")
    parser.add_argument("--base", help="the base; default: as recorded")
    options = parser.parse_args(argv)
    try:
        model, tokenizer = load_model(options.model, LoadOptions(base=options.base))
        if not isinstance(model, ControlLLMForCausalLM):
            raise ModelError(f"{options.model} is no expanded model; mergekit takes it as it is.")
        print(write_for_mergekit(model, options.folder, options.base, tokenizer))
    except ControlLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
