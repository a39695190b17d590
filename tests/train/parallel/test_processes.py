"""Who a process is, from the variables of every launcher, whole and halved."""

from typing import Any

import pytest

from controlllm.common.errors import ConfigError
from controlllm.train.parallel.processes import Place, first_host, launched, place_in

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "1234",
}
POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
SRUN = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "9",
    "SLURM_STEP_NUM_TASKS": "10",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
}
# What sbatch and salloc give to the shell, before any srun.
ALLOCATION = {
    "SLURM_JOB_ID": "4242",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "gpu[07-09]",
}


def without(variables: dict[str, str], *names: str, **others: str) -> dict[str, str]:
    return {k: v for k, v in variables.items() if k not in names} | others


def test_torchrun() -> None:
    assert place_in(TORCHRUN) == Place(5, 8, 1, 4, "head", 1234)
    assert launched(TORCHRUN)


def test_a_pod_has_one_process() -> None:
    assert place_in(POD) == Place(1, 2, 0, 1, "job-master-0", 23456)


def test_one_process_of_a_launcher_is_launched_all_the_same() -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    assert launched(alone)
    assert place_in(alone) == Place(0, 1, 0, 1, "localhost", 29500)


def test_srun_with_nodes_of_different_sizes() -> None:
    place = place_in(SRUN)
    assert place is not None
    assert (place.rank, place.world_size, place.address) == (9, 10, "gpu07")
    assert (place.local_rank, place.local_world_size) == (0, 2)
    first = place_in(SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "0"})
    assert first is not None
    assert (first.local_world_size, first.address, first.port) == (4, "gpu07", place.port)


def test_two_steps_of_a_job_meet_at_different_ports() -> None:
    ports = {
        place.port
        for step in ("0", "1", "2")
        for job in ("4242", "4243")
        if (place := place_in(SRUN | {"SLURM_STEP_ID": step, "SLURM_JOB_ID": job}))
    }
    assert len(ports) == 6
    assert all(20_000 <= port < 40_000 for port in ports)


def test_what_the_user_says_counts_more_than_slurm() -> None:
    place = place_in(SRUN | {"MASTER_ADDR": "ib-gpu07", "MASTER_PORT": "555"})
    assert place is not None
    assert (place.address, place.port) == ("ib-gpu07", 555)


def test_torchrun_within_a_slurm_step_counts_more() -> None:
    assert place_in(SRUN | TORCHRUN) == place_in(TORCHRUN)


@pytest.mark.parametrize(
    "variables",
    [{}, ALLOCATION, without(SRUN, SLURM_STEP_NUM_TASKS="1"), {"WORLD_SIZE": "1"}],
    ids=["none", "allocation", "one task", "a leftover"],
)
def test_a_process_of_its_own(variables: dict[str, str]) -> None:
    assert not launched(variables)
    assert place_in(variables) is None


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (without(TORCHRUN, "RANK"), "RANK is not set"),
        (without(TORCHRUN, "WORLD_SIZE"), "WORLD_SIZE is not set"),
        (without(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK is not set"),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), "LOCAL_WORLD_SIZE is not set"),
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR is not set, for 8 processes"),
        (TORCHRUN | {"RANK": ""}, "RANK='' is not a number"),
        (TORCHRUN | {"MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT='tcp://10.0.0.1:80' is not"),
        (TORCHRUN | {"RANK": "8"}, "rank 8 of 8"),
        (TORCHRUN | {"RANK": "-1"}, "rank -1 of 8"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "local rank 4 of 4"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "local rank 1 of 9"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "port 70000"),
        (without(SRUN, "SLURM_PROCID"), "SLURM_PROCID is not set"),
        (without(SRUN, "SLURM_LOCALID"), "SLURM_LOCALID is not set"),
        (without(SRUN, "SLURM_NODEID"), "SLURM_NODEID is not set"),
        (without(SRUN, "SLURM_STEP_NUM_NODES"), "SLURM_STEP_NUM_NODES is not set"),
        (without(SRUN, "SLURM_STEP_NODELIST"), "names no host; set MASTER_ADDR"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "ten"}, "SLURM_STEP_NUM_TASKS='ten' is not a number"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x2"}, "TASKS_PER_NODE='4(x2' is not understood"),
        (SRUN | {"SLURM_NODEID": "3"}, "node 3 of 3"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "5(x2)"}, "node 2 of 3, but .* lists 2"),
    ],
)
def test_halves_and_contradictions_are_refused(variables: dict[str, str], told: str) -> None:
    assert launched(variables)
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")) as error:
        place_in(variables)
    assert "which set them all" in str(error.value) or "MASTER_ADDR" in str(error.value)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("localhost", "localhost"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[1-4,7]", "gpu1"),
        ("gpu[007]", "gpu007"),
        ("gpu-a[03-05,9],gpu-b1", "gpu-a03"),
        ("node[12,15].cluster.local", "node12.cluster.local"),
        ("rack[0-1]node[2-3]", "rack0node2"),
    ],
)
def test_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize("hosts", ["", ",", "gpu[1-2", "gpu[1-2,gpu7"])
def test_no_host(hosts: Any) -> None:
    with pytest.raises(ConfigError, match="names no host"):
        first_host(hosts)
