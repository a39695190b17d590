"""Two processes (DDP) with the base inside as reference train as with a second copy."""

import os
import socket

from tests.integrations.trl_runs import PAIRS, dpo_config, expanded, load_base, losses, trained
from tests.processes import run_ranks, values
from trl import DPOTrainer

from controlllm.integrations import ControlLLMCallback
from controlllm.integrations.trl import ControlLLMDPOTrainer


def train(rank, port, folder, tmp_path, tokenizer, own_copy):
    """What one of the processes logs, and its trained weights."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, by the fork
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in where.items()}, MASTER_ADDR="localhost")
    trainer_class = DPOTrainer if own_copy else ControlLLMDPOTrainer
    trainer = trainer_class(
        model=expanded(folder),
        ref_model=load_base(folder) if own_copy else None,
        args=dpo_config(tmp_path, 2, max_steps=2),
        train_dataset=PAIRS.select(range(8)),
        processing_class=tokenizer,
        callbacks=[ControlLLMCallback()],
    )
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    return losses(trainer), {n: p.tolist() for n, p in trained(trainer.model).items()}


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_two_processes_equal_a_second_copy(base_folder, tmp_path, pico_tokenizer):
    runs = []
    for own_copy in (False, True):
        arguments = (free_port(), base_folder, tmp_path, pico_tokenizer, own_copy)
        ranks = run_ranks(lambda rank, given=arguments: train(rank, *given), 2, tmp_path / "out")
        runs.append(values(ranks))
    assert runs[0] == runs[1]
    (_, weights), (_, others) = runs[0]
    assert weights == others
