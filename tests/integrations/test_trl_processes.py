"""Two processes (DDP): as one process, and with the base inside as with a second copy."""

import os
import socket

from datasets import Dataset
from tests.integrations.trl_runs import (
    PAIRS,
    assert_same,
    dpo_config,
    expanded,
    load_base,
    losses,
    sft_config,
    trained,
)
from tests.processes import run_ranks, values
from trl import DPOTrainer

from controlllm.integrations import ControlLLMCallback
from controlllm.integrations.trl import ControlLLMDPOTrainer, ControlLLMSFTTrainer

EVEN = Dataset.from_list([{"text": f"{i} and {i}"} for i in range(8)])
"""Rows of one length, so that each process has as many tokens."""


def dpo_trainer(folder, tmp_path, tokenizer, own_copy):
    trainer_class = DPOTrainer if own_copy else ControlLLMDPOTrainer
    return trainer_class(
        model=expanded(folder),
        ref_model=load_base(folder) if own_copy else None,
        args=dpo_config(tmp_path, 2, max_steps=2),
        train_dataset=PAIRS.select(range(8)),
        processing_class=tokenizer,
        callbacks=[ControlLLMCallback()],
    )


def sft_trainer(folder, tmp_path, tokenizer, batch_size):
    return ControlLLMSFTTrainer(
        expanded(folder, 2.0),
        args=sft_config(tmp_path, max_steps=2, per_device_train_batch_size=batch_size),
        train_dataset=EVEN,
        processing_class=tokenizer,
    )


def in_two_processes(tmp_path, make_trainer, *arguments):
    """Trained weights and log of each process."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]

    def train(rank):
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, by the fork
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update(
            {key: str(value) for key, value in where.items()}, MASTER_ADDR="localhost"
        )
        trainer = make_trainer(*arguments)
        trainer.train()
        assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
        return {n: p.tolist() for n, p in trained(trainer.model).items()}, losses(trainer)

    return values(run_ranks(train, 2, tmp_path / "outcomes", timeout=150))


def test_dpo_equals_a_second_copy(talking_folder, tmp_path, pico_tokenizer):
    given = (talking_folder, tmp_path, pico_tokenizer)
    ours, theirs = (in_two_processes(tmp_path, dpo_trainer, *given, copy) for copy in (False, True))
    assert ours == theirs
    assert ours[0][0] == ours[1][0], "the processes went apart"


def test_sft_equals_one_process(talking_folder, tmp_path, pico_tokenizer):
    """Its loss is multiplied by the number of processes, the divergence is not: both are means."""
    given = (talking_folder, tmp_path, pico_tokenizer)
    (weights, _), _ = in_two_processes(tmp_path, sft_trainer, *given, 2)
    one = sft_trainer(*given, 4)
    one.train()
    two = expanded(talking_folder)
    for name, parameter in trained(two).items():
        parameter.copy_(parameter.new_tensor(weights[name]))
    assert_same(two, one.model)
