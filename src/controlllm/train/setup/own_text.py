"""What the base of a run, and each run before it, writes by itself: measured, never trained on."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.data import Example
from controlllm.evaluate import Certificate, RetentionReport, certify, write_own_text
from controlllm.evaluate.own_text import OWN_TEXT, OWN_TEXT_CHAT, certificates
from controlllm.train.config.run_config import RunConfig
from controlllm.train.parallel.loading import is_without_weights
from controlllm.train.setup.model import load_base
from controlllm.train.setup.stages import Ready
from controlllm.train.setup.ways.contract import BASE, Stage

__all__ = ["final_certificates", "own_text_folder", "stages_own_text"]

log = logging.getLogger(__name__)


def own_text_folder(run: RunConfig) -> Path:
    """Where the own text of a run's base lies."""
    return Path(run.own_text.cache_dir or Path(run.training.output_dir) / "own_text")


def stages_own_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: RunConfig,
    stages: Sequence[Stage],
) -> dict[str, list[Example]]:
    """Own text of the base by the name of the set; none where the run does not measure it.

    That of an earlier run `a` is called `a/own_text`, and is kept beside that run.

    Args:
        model: the base, or a model that carries it. If it has no weights yet, as each process is to
            read its own parts, the base is loaded whole for as long as it writes.
        tokenizer: its tokenizer.
        run: the run config.
        stages: the base and earlier runs, where the run goes on from one.

    Raises:
        ConfigError: what the run asks for cannot be written.
    """
    if not run.own_text.measured_in(run):
        return {}
    if is_without_weights(model):
        if not run.own_text.measure:
            log.warning(
                "Own text is not measured: each process reads its parts of the weights only, and "
                "no model is there that could write. own_text.measure=true lets the first process "
                "load the whole base for as long as it writes, if it has the memory."
            )
            return {}
        model = load_base(run)[0]
    own = own_text_folder(run)
    found: dict[str, list[Example]] = {}
    for stage in stages or (Stage(BASE),):
        folder = own if run.own_text.cache_dir else stage.folder_of_text(own)
        written = write_own_text(stage.writer(model), tokenizer, run.own_text, run.data, folder)
        begin = "" if stage.name == BASE else f"{stage.name}/"
        found |= {f"{begin}{name}": examples for name, examples in written.items()}
    return found


def final_certificates(
    ready: Ready, measured: Mapping[str, RetentionReport]
) -> dict[str, Certificate]:
    """The certificates of the trained model, on more text where a precision is wished. Collective.

    `measured` are the reports of its last evaluation.
    """
    found, run, reference = certificates(measured), ready.run, ready.reference
    wished = run.own_text.precision
    short = {name for name, one in found.items() if wished and not one.precision <= wished}
    if of_stages := sorted(short - {OWN_TEXT, OWN_TEXT_CHAT}):
        log.warning(
            "own_text.precision=%g is not reached on %s: in the end the base alone writes more. "
            "A larger own_text.num_sequences lets earlier stages write more, too.",
            wished,
            ", ".join(of_stages),
        )
    if short <= {*of_stages}:
        return found
    if ready.world.shares or reference is None:
        log.warning(
            "own_text.precision=%g is not reached: the model lies in parts on several processes, "
            "and writes no more text. `controlllm calibrate` writes more.",
            wished,
        )
        return found
    with ready.autocast():
        return found | certify(
            ready.model,
            ready.tokenizer,
            own_text_folder(run),
            run.own_text,
            run.data,
            reference,
            run.training.per_device_eval_batch_size,
            ranks=ready.world.data_ranks,
        )
