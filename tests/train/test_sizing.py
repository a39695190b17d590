"""How long a run is, and the warning where its data ends before its schedule."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from controlllm.data.loader.open_source import Size
from controlllm.train import train
from controlllm.train.setup.ready import set_up
from controlllm.train.setup.sizing import steps_per_epoch


def warned(run: Any, loaded: Any) -> list[str]:
    """What setting a run up warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_up(run, loaded())
    return [str(w.message) for w in caught if "`epochs`" in str(w.message)]


def train_on(texts: dict[str, str], *epochs: float | None) -> list[dict[str, Any]]:
    paths = (texts["new"], texts["old"])
    return [{"path": p, "epochs": e} for p, e in zip(paths, epochs, strict=False)]


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_data_that_ends_before_the_schedule_is_told_at_the_start(
    run_config: Any, loaded: Any, texts: dict[str, str], backend: str
) -> None:
    """A pass over some 1,770 tokens, 128 in a step: as many steps as were told, and not 100."""
    run = run_config(
        data={"train": train_on(texts, 1)},
        training={"backend": backend, "max_steps": 100, "eval_steps": 1000},
    )
    with pytest.warns(UserWarning, match=r"give about \d+ steps.*scheduled for training") as caught:
        result = train(run, loaded())
    told = [str(w.message) for w in caught if "`epochs`" in str(w.message)]
    assert len(told) == 1
    steps = re.search(
        r"about (\d+) steps.* max_steps=(\d+) \(and", told[0].replace("training.", " ")
    )
    assert steps and steps[1] == steps[2]
    assert result.stopped_because == "end_of_data"
    assert abs(result.history[-1]["step"] - int(steps[1])) <= 1
    assert "at 98% of the peak rate" in told[0]


def test_it_is_quiet_where_the_data_lasts(
    run_config: Any, loaded: Any, texts: dict[str, str]
) -> None:
    short = {"training": {"max_steps": 14}}
    assert not warned(run_config(data={"train": train_on(texts, 1)}, **short), loaded)
    long = {"training": {"max_steps": 1000}}
    assert not warned(run_config(data={"train": train_on(texts, None)}, **long), loaded)
    # One source that goes round for ever keeps the run going.
    assert not warned(run_config(data={"train": train_on(texts, 1, None)}, **long), loaded)
    (told,) = warned(run_config(data={"train": train_on(texts, 1, 2)}, **long), loaded)
    assert "about 41 steps" in told  # About 1,810 tokens once and 1,650 twice.


def test_passes_beyond_the_epochs_are_told(
    run_config: Any, loaded: Any, texts: dict[str, str]
) -> None:
    """Epochs end the data, whatever the number of passes asks for."""
    twice = {"data": {"train": train_on(texts, 2)}}
    assert not warned(run_config(**twice, training={"num_train_epochs": 2}), loaded)
    (told,) = warned(run_config(**twice, training={"num_train_epochs": 5}), loaded)
    assert "about 29 steps" in told and "steps of training.num_train_epochs=5" in told


def test_a_bad_row_or_an_unknown_size_is_no_matter_of_the_warning(
    run_config: Any, loaded: Any, tmp_path: Path
) -> None:
    """The run itself names the row, if it ever comes to it."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": 1}\n' * 3)
    run = run_config(data={"train": [{"path": str(path), "epochs": 1}]})
    assert not warned(run, loaded)


def test_steps_of_a_pass(run_config: Any) -> None:
    """2 rows or slots, 2 micro-batches; slots of 32 tokens; half of the mix is replay."""
    size = Size(examples=100, tokens=3200, exact=True)
    for data, steps in (
        ({}, 25),
        ({"packing": False}, 25),
        ({"packing": False, "max_tokens_per_batch": 160}, 10),
    ):
        run = run_config(data=data)
        assert steps_per_epoch(run, size) == steps
        run.data.replay_share = 0.5
        assert steps_per_epoch(run, size) == 2 * steps
