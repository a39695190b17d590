"""The story from beginning to end; what is done is on disk before the next part begins."""

import os
import platform
import shlex
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

import controlllm
from controlllm.common.errors import ConfigError
from controlllm.common.quiet import quiet_bars
from controlllm.demo.config import DemoConfig
from controlllm.demo.domains import choosing, held_out, write_data
from controlllm.demo.forms import FORMS, export_form, write_texts
from controlllm.demo.methods import METHODS, load_base, train_and_measure
from controlllm.demo.picture import draw
from controlllm.demo.results import Results
from controlllm.demo.threads import quickest_threads

__all__ = ["run"]

RESULTS = "results.json"


def run(config: DemoConfig | None = None) -> Results:
    """Tell the story: print it, and write `results.json`, `plane.png`, the runs and the exports.

    Interrupted, it leaves what was done: the results so far, and whole runs and exports.

    Raises:
        ConfigError: if the output folder holds something else than an earlier demo.
        DataError: if this Python comes without the source files of its standard library.
    """
    config = config or DemoConfig()
    started, folder = time.monotonic(), _claim(Path(config.output_dir))
    results = Results(_environment(config))
    results.save(folder / RESULTS)
    with ExitStack() as stack, quiet_bars(on_terminals=True):
        # Tiny numbers count as zero: many of them slow down training on a CPU.
        torch.set_flush_denormal(True)
        stack.callback(torch.set_flush_denormal, False)
        _say("Reading this Python: English about it (old domain), its code (new domain)")
        write_data(folder / "data", config)
        base, tokenizer = load_base()
        sets = held_out(folder / "data", tokenizer)
        _say("The base writes what its dials are chosen on where there is no old text")
        with quickest_threads(base):
            chooses = choosing(folder / "data", base, tokenizer, config)
        for method in METHODS:
            _say(f"Learning code by {method.title}")
            with quickest_threads(base):
                outcome, model = train_and_measure(method, config, sets, chooses)
            results.outcomes.append(outcome)
            results.save(folder / RESULTS)
        draw(results, folder / "plane.png")
        _say("The last model, calibrated, in the three forms it can be taken away in")
        for form in FORMS:
            place = folder / "exports" / form
            results.forms.append(export_form(model, tokenizer, place, sets))
            results.save(folder / RESULTS)
            print(place, flush=True)
    results.seconds = time.monotonic() - started
    results.save(folder / RESULTS)
    _tell(results, write_texts(base, tokenizer), folder)
    return results


def _tell(results: Results, base_texts: dict[str, str], folder: Path) -> None:
    """Everything found, at the end, in one place."""
    _say("What they write (greedy)")
    for prompt, text in base_texts.items():
        print(f"after {prompt!r}")
        for name, written in [("base", text), *((f.form, f.texts[prompt]) for f in results.forms)]:
            print(f"  {name:<10}{written!r}")
    _say("The forms")
    print(results.forms_table())
    _say("What was learned, what was forgotten (held-out text, nats per token)")
    print(results.table())
    print(f"\n{folder / RESULTS}, {folder / 'plane.png'}: {results.seconds:.0f} s in all")
    _say("Use it: in the terminal, or in a browser and by OpenAI's clients, with alpha as you like")
    for verb in ("chat", "serve"):
        print(f"controlllm {verb} {shlex.quote(str(folder / 'exports' / FORMS[0]))}")


def _claim(folder: Path) -> Path:
    """Take the output folder, unless it holds something else (ConfigError)."""
    if folder.is_file():
        raise ConfigError(f"output_dir={str(folder)!r} is a file; choose a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RESULTS).is_file():
        raise ConfigError(
            f"output_dir={str(folder)!r} is not empty and holds no earlier demo; choose another."
        )
    return folder


def _environment(config: DemoConfig) -> dict[str, object]:
    return {
        "controlllm": controlllm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "settings": asdict(config),
    }


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
