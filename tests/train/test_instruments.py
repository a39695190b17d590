"""What a run says of its time, its FLOPs and its memory."""

import time
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from controlllm.train import train
from controlllm.train.observe import metrics as names
from controlllm.train.observe.flops import FlopCount
from controlllm.train.observe.instruments import Instruments
from controlllm.train.observe.model_parts import parts_of
from controlllm.train.observe.peaks import measured_peak
from controlllm.train.observe.progress import Window
from controlllm.train.observe.timing import BACKWARD, DATA, FORWARD, STEP_PHASES, PhaseClock
from controlllm.train.setup.ready import set_up

CPU = torch.device("cpu")


def test_a_phase_inside_another_is_counted_once() -> None:
    clock = PhaseClock(CPU)
    begin = time.perf_counter()
    with clock.phase(BACKWARD):
        with clock.phase(FORWARD):
            time.sleep(0.02)
        time.sleep(0.01)
    lasted = time.perf_counter() - begin
    seconds = clock.take()
    assert seconds[FORWARD] >= 0.02 and seconds[BACKWARD] >= 0.01
    assert sum(seconds.values()) <= lasted
    assert clock.take() == {}
    assert (clock.standing.phase, clock.standing.count) == (None, 4)


def test_a_phase_ends_where_an_error_leaves_it() -> None:
    clock = PhaseClock(CPU)
    with pytest.raises(KeyError), clock.phase(FORWARD):
        raise KeyError
    assert clock.standing.phase is None and FORWARD in clock.take()


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_every_record_splits_the_step(run_config: Any, loaded: Any, backend: str) -> None:
    run = run_config(training={"backend": backend}, logging={"logging_steps": 2})
    rows = [row for row in train(run, loaded()).history if names.LOSS in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        phases = {phase: row[names.PHASE_SECONDS.format(phase)] for phase in STEP_PHASES}
        assert all(phases[phase] > 0 for phase in (DATA, FORWARD, BACKWARD, "optimizer"))
        assert sum(phases.values()) <= row[names.STEP_SECONDS] * 1.05
        assert 0 < row[names.MFU] <= row[names.HFU] < 1
        assert 0 < row[names.MEMORY_ALLOCATED] <= row[names.MEMORY] * 1.01


@pytest.mark.parametrize("packing", [True, False])
def test_flops_are_those_of_the_batches(run_config: Any, loaded: Any, packing: bool) -> None:
    ready = set_up(run_config(data={"packing": packing}), loaded())
    instruments, window = (
        Instruments(ready.run, ready.loss, ready.world),
        Window(steps=1, seconds=2.0),
    )
    batches = ready.next_batches()
    instruments.count(batches)
    metrics = instruments.metrics(window)
    count = FlopCount(parts_of(ready.model))
    if packing:
        lengths = torch.cat([batch["cu_seq_lens_q"].diff().long() for batch in batches])
    else:
        shapes = [batch["input_ids"].shape for batch in batches]
        lengths = torch.tensor([length for rows, length in shapes for _ in range(rows)])
    flops = count.of(lengths)
    peak = measured_peak(CPU, torch.float32)
    assert metrics[names.TFLOPS] == pytest.approx(flops.model / 2.0 / 1e12)
    assert metrics[names.MFU] == pytest.approx(flops.model / 2.0 / peak)
    assert metrics[names.HFU] == pytest.approx(flops.hardware / 2.0 / peak)
    ready.loader.close()


def test_a_loss_in_chunks_is_counted_as_torch_counts(run_config: Any, loaded: Any) -> None:
    model, tokenizer = loaded()
    model.set_attn_implementation("eager")
    run = run_config(training={"loss_chunk_size": 5}, data={"packing": False})
    ready = set_up(run, (model, tokenizer))
    batches = ready.next_batches()
    instruments, window = Instruments(ready.run, ready.loss, ready.world), Window()
    instruments.count(batches)
    instruments.take(window)
    counts = ready.loss.count(batches)
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            ready.loss.micro_batch(batch, counts).backward()
    assert window.hardware_flops == counter.get_total_flops()
    ready.loader.close()


def test_the_base_is_counted_where_rehearsal_asks_it(run_config: Any, loaded: Any) -> None:
    settings = {"num_sequences": 8, "length": 16, "share": 0.5}
    asked, plain = (
        set_up(run_config(rehearsal={**settings, "loss": loss}), loaded()) for loss in ("kl", "ce")
    )
    windows = []
    for ready in (asked, plain):
        instruments, window = Instruments(ready.run, ready.loss, ready.world), Window()
        instruments.count(ready.next_batches())
        instruments.take(window)
        windows.append(window)
        ready.loader.close()
    assert windows[0].model_flops > windows[1].model_flops


def test_a_window_goes_through_a_checkpoint() -> None:
    window = Window(steps=1, phases={DATA: 0.5}, model_flops=3.0, hardware_flops=4.0)
    assert Window(**asdict(window)) == window
    older = {"steps": 2, "tokens": 3, "positions": 3, "seconds": 1.0, "sums": {}}
    assert Window(**older).phases == {}
