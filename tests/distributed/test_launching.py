"""Runs by the command line: started in several processes, asked to stop, killed, failing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from benchmarks import soak
from tests.processes import start as fork

from controlllm.checkpoint import newest_checkpoint
from controlllm.cli import launch, main
from controlllm.common.errors import ConfigError, DataError, TrainingError
from controlllm.train.loops.native import NativeLoop

SECONDS = 120


@pytest.fixture
def run_file(place: Path, tmp_path: Path) -> Any:
    """`run_file(name, steps, **training)`: a run file for a folder in `tmp_path`."""

    def write(name: str, steps: int = 12, **training: Any) -> Path:
        values = soak.run_config(place, name, steps).to_dict()
        values["training"] |= {"output_dir": str(tmp_path / name), **training}
        values["data"]["num_workers"] = 1
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def start(*words: object, **variables: str) -> subprocess.Popen[str]:
    """A process group of its own, as a shell makes it."""
    return subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", **variables},
    )


def train(path: Path, *words: object) -> subprocess.Popen[str]:
    return start(sys.executable, "-m", "controlllm.cli", "train", path, *words)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while max((row["step"] for row in soak.rows_of(folder)), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "train" in p.cmdline()]


@pytest.mark.slow
def test_started_killed_stopped_and_done(run_file: Any, tmp_path: Path) -> None:
    """A run by two processes loses one of them, goes on, is asked to stop, and goes on."""
    path, folder = run_file("run", steps=20), tmp_path / "run"
    process = train(path, "--nproc", 2, "--max_restarts", 1)
    wait_for_step(folder, 4, process)
    before, workers = soak.record_of(folder), workers_of(process)
    assert len(workers) == 2
    assert workers[0].environ()[launch.LAUNCHER] == str(process.pid)
    workers[1].send_signal(signal.SIGKILL)
    end = time.monotonic() + SECONDS
    while soak.record_of(folder) == before:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    wait_for_step(folder, 8, process)
    process.send_signal(signal.SIGUSR1)
    code, out, err = ended(process)
    assert code == launch.PREEMPTED == 75, err
    assert out.count("stopped because preempted") == 1
    assert err.count("starting the processes again (1 of 1)") == 1
    assert err.count("Training source") == 2  # Once for each start, and by one process.
    assert "Traceback" not in err and "death signal" not in err
    stopped_at = max(row["step"] for row in soak.rows_of(folder))
    assert 8 <= stopped_at < 20
    assert newest_checkpoint(folder) == folder / f"checkpoint-{stopped_at}"
    assert not list(folder.glob(".*"))

    for name in ("run", "straight"):
        codes, printed = run_ranks(run_file(name, steps=20), tmp_path / "logs")
        assert codes == [0, 0]
        assert printed[0].endswith(f"{tmp_path / name}: stopped because max_steps\n")
    soak.require_same(folder, tmp_path / "straight")


def test_without_their_launcher_the_processes_save_and_end(run_file: Any, tmp_path: Path) -> None:
    """A launcher that was forked; that a real one tells its id is seen above."""
    path, folder = run_file("run", steps=400), tmp_path / "run"

    def launch_and_wait() -> None:
        os.environ[launch.LAUNCHER] = str(os.getpid())
        soak.wait_for(soak.start_ranks(lambda: main(["train", str(path)]), 2, tmp_path / "logs"))

    process, end = fork(launch_and_wait), time.monotonic() + SECONDS
    while max((row["step"] for row in soak.rows_of(folder)), default=0) < 4:
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.kill()
    process.join()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert not alive
    done = max(row["step"] for row in soak.rows_of(folder))
    assert 4 <= done < 400
    assert newest_checkpoint(folder) == folder / f"checkpoint-{done}"


def test_without_their_launcher_the_processes_of_eval_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them while it works, the other while it waits for that one."""
    from controlllm.cli import evaluate_models

    original = evaluate_models.evaluate_losses

    def slow(model: Any, batches: Any, ranks: Any) -> Any:
        (tmp_path / f"at-{ranks.rank}").touch()
        if ranks.rank == 1:
            time.sleep(SECONDS)
        return original(model, batches, ranks)

    monkeypatch.setattr(evaluate_models, "evaluate_losses", slow)
    (tmp_path / "text.txt").write_text("once upon a time there was a little girl. " * 40)
    words = ["eval", str(place / "base"), "--files", str(tmp_path / "text.txt")]
    words += ["--load.device", "cpu"]

    def launch_and_wait() -> None:
        os.environ[launch.LAUNCHER] = str(os.getpid())
        soak.wait_for(soak.start_ranks(lambda: main(words), 2, tmp_path / "logs"))

    process, end = fork(launch_and_wait), time.monotonic() + SECONDS
    while not all((tmp_path / f"at-{rank}").exists() for rank in range(2)):
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.kill()
    process.join()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.slow
def test_two_nodes_by_torchrun(run_file: Any, tmp_path: Path, repository: Path) -> None:
    """Two agents on this machine are two nodes to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{probe.getsockname()[1]}"
    path = run_file("run", steps=3)
    variables = {"NODES": "2", "NPROC": "1", "HEAD": head}
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = repository / "launch" / "torchrun.sh"
    words = (script, path, "--parallel.strategy", "hsdp")
    nodes = [start("bash", *words, **variables) for _ in range(2)]
    results = [ended(node) for node in nodes]
    assert [code for code, _, _ in results] == [0, 0], results
    assert "".join(out for _, out, _ in results).count("stopped because max_steps") == 1
    newest = newest_checkpoint(tmp_path / "run")
    assert newest == tmp_path / "run" / "checkpoint-3"
    # With a process on each node, each node has a copy, and so the whole of every tensor.
    assert len(list(newest.glob("shard-*.safetensors"))) >= 1


def run_ranks(path: Path, logs: Path, count: int = 2, *words: str) -> tuple[list[int], list[str]]:
    """Train by the command in forked processes; exit codes, and what they printed."""
    logs.mkdir(exist_ok=True)

    def call() -> int:
        return main(["train", str(path), *words])

    codes = soak.wait_for(soak.start_ranks(call, count, logs))
    return codes, [(logs / f"rank-{rank}.log").read_text() for rank in range(count)]


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, failures: dict[int, Any]) -> None:
    """Let ranks fail at the begin of a step, each by a function of its own."""
    original = NativeLoop.step

    def step_or_fail(self: NativeLoop, batches: Any) -> Any:
        rank = self.ready.world.ranks.rank
        if self.recorder.state.progress.step == step and rank in failures:
            failures[rank]()
        return original(self, batches)

    monkeypatch.setattr(NativeLoop, "step", step_or_fail)


def raises(error: Exception) -> Any:
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_ends_all_and_is_shown_once(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    fail_at(monkeypatch, 2, {rank: raises(DataError("row 7 of x.jsonl is no JSON"))})
    codes, printed = run_ranks(run_file("run"), tmp_path / "logs")
    # With the first process goes the store, by which the others hear why.
    assert codes == ([2, 1] if rank == 0 else [2, 2])
    text = "".join(printed)
    assert text.count("controlllm: row 7 of x.jsonl is no JSON\n") == 1
    assert "controlllm: " not in printed[1 - rank], printed[1 - rank]
    assert "Traceback" not in text


def test_the_same_error_of_all_is_shown_once(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = raises(TrainingError("step 3: loss is nan"))
    fail_at(monkeypatch, 2, {0: fail, 1: fail, 2: fail})
    codes, printed = run_ranks(run_file("run"), tmp_path / "logs", 3)
    assert codes == [2, 2, 2]
    assert "".join(printed).count("controlllm: step 3: loss is nan\n") == 1


def test_a_bug_shows_one_stack(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the step after a checkpoint was begun, which is written in the background.
    fail_at(monkeypatch, 3, {1: lambda: {}["missing"]})
    codes, printed = run_ranks(run_file("run"), tmp_path / "logs")
    assert codes == [1, 1]
    assert "KeyError: 'missing'" in printed[1]
    assert "Traceback" not in printed[0] and "controlllm: " not in printed[0]


def test_an_error_of_the_input_is_shown_once(run_file: Any, tmp_path: Path) -> None:
    path = run_file("run")
    codes, printed = run_ranks(path, tmp_path / "logs", 2, "--training.lerning_rate=1")
    assert codes == [2, 2]
    assert "".join(printed).count("Did you mean --training.learning_rate?") == 1
    codes, printed = run_ranks(path, tmp_path / "logs", 2, "--data.train=[]")
    assert codes == [2, 2]
    assert "".join(printed).count("data.train names no source") == 1


def test_where_one_is_killed_another_says_so(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 2, {2: lambda: os.kill(os.getpid(), signal.SIGKILL)})
    codes, printed = run_ranks(run_file("run"), tmp_path / "logs", 3)
    assert codes == [1, 1, -signal.SIGKILL]
    text = "".join(printed)
    assert text.count("lost another rank, which died") == 1
    assert "Traceback" not in text


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_all_stop_where_one_is_asked_to(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    """The second process gets the signal; both finish the step, save, and end with 75."""
    fail_at(monkeypatch, 4, {1: lambda: os.kill(os.getpid(), signal.Signals[number])})
    codes, printed = run_ranks(run_file("run", steps=7), tmp_path / "logs")
    assert codes == [75, 75], printed
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-5"
    assert "stopped because preempted" in printed[0]
    assert printed[1] == ""


def test_a_whole_process_group_is_asked_and_the_data_workers_with_it(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun and Slurm do it; the batches of the step must still come."""

    def kill_the_group() -> None:
        os.setpgid(0, 0)
        for child in psutil.Process().children():
            os.setpgid(child.pid, os.getpgid(0))
        # By another process, as the workers do end at their parent's own word.
        killer = os.fork()
        if not killer:
            os.killpg(os.getppid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(killer, 0)
        time.sleep(0.2)

    fail_at(monkeypatch, 2, {0: kill_the_group, 1: kill_the_group})
    codes, printed = run_ranks(run_file("run", gradient_accumulation_steps=3), tmp_path / "logs")
    assert codes == [75, 75], printed
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-3"


def test_a_second_signal_ends_at_once(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    fail_at(monkeypatch, 4, {0: twice, 1: twice})
    codes, _ = run_ranks(run_file("run"), tmp_path / "logs")
    assert codes == [-signal.SIGTERM] * 2
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-3"


def test_before_the_first_step_there_is_nothing_to_save(
    run_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from controlllm.train import run as running

    def asked(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(running, "set_up", asked)
    codes, printed = run_ranks(run_file("run"), tmp_path / "logs")
    assert codes == [75, 75]
    assert "Traceback" not in "".join(printed)
    assert newest_checkpoint(tmp_path / "run") is None


@pytest.mark.parametrize(
    ("nproc", "device", "gpus", "count"),
    [
        ("auto", "auto", 0, 1),
        ("auto", "auto", 1, 1),
        ("auto", "auto", 8, 8),
        ("auto", "cuda", 4, 4),
        ("auto", "cuda:1", 4, 1),
        ("auto", "cpu", 4, 1),
        (1, "auto", 4, 1),
        (2, "auto", 4, 2),
        (3, "cpu", 0, 3),
    ],
)
def test_how_many_are_started(
    monkeypatch: pytest.MonkeyPatch, nproc: Any, device: str, gpus: int, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.processes_to_start(nproc, device) == count
    monkeypatch.setenv("RANK", "0")
    if nproc in ("auto", 1):
        assert launch.processes_to_start(nproc, device) == 0
    else:
        with pytest.raises(ConfigError, match="has started this process already"):
            launch.processes_to_start(nproc, device)


def test_what_cannot_be_started_is_refused(capsys: pytest.CaptureFixture[str], run_file) -> None:
    with pytest.raises(ConfigError, match="'cuda:1' is one device"):
        launch.processes_to_start(2, "cuda:1")
    path = run_file("run")
    for words, told in (
        (["--nproc", "0"], "nproc=0 is out of range; allowed: at least 1"),
        (["--nproc", "many"], "nproc"),
        (["--max_restarts", "-1"], "max_restarts=-1 is out of range; allowed: at least 0"),
        (["--nproc", "2", "--training.max_steps", "0"], "training.max_steps=0"),
    ):
        assert main(["train", str(path), *words]) == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1


def test_own_options_are_not_passed_on() -> None:
    words = ["run.yaml", "--nproc", "2", "--training.max_steps", "3", "--max_restarts=1", "--debug"]
    kept = launch._without(words, launch._OWN_OPTIONS)
    assert kept == ["run.yaml", "--training.max_steps", "3", "--debug"]


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_scripts_are_shell(repository: Path, name: str) -> None:
    path = repository / "launch" / name
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_torchrun_script_says_what_is_missing(repository: Path) -> None:
    script = str(repository / "launch" / "torchrun.sh")
    for words, variables, told in (([], {}, "usage:"), (["x.yaml"], {"NODES": "2"}, "need HEAD=")):
        done = subprocess.run(
            ["bash", script, *words],
            capture_output=True,
            text=True,
            env=os.environ | variables,
            check=False,
        )
        assert done.returncode == 2
        assert told in done.stderr


def test_slurm_script_asks_for_the_signal_and_is_queued_again(
    repository: Path, tmp_path: Path
) -> None:
    """With commands in the place of Slurm's: they are given what the script says."""
    script = repository / "launch" / "slurm.sbatch"
    directives = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=USR1@120" in directives and "#SBATCH --requeue" in directives
    for name, body in (("srun", 'exit "$CODE"'), ("scontrol", ":")):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> "$LOG"\n{body}\n')
        command.chmod(0o755)
    calls = {}
    for code in (0, 2, 75):
        log = tmp_path / f"log-{code}"
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
        variables |= {"CODE": str(code), "SLURM_JOB_ID": "42"}
        words = ["bash", str(script), "run.yaml", "--nproc", "auto"]
        done = subprocess.run(words, env=os.environ | variables, check=False)
        assert done.returncode == code
        calls[code] = log.read_text().splitlines()
    srun = "srun --kill-on-bad-exit=1 controlllm train run.yaml --nproc auto"
    assert calls == {0: [srun], 2: [srun], 75: [srun, "scontrol requeue 42"]}


def test_pytorchjob_has_the_form_of_its_operator(repository: Path) -> None:
    job = yaml.safe_load((repository / "launch" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(job["spec"]) == {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"}
    assert isinstance(job["spec"]["nprocPerNode"], str)  # As the operator's schema has it.
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        assert replica["restartPolicy"] == "OnFailure"
        pod = replica["template"]["spec"]
        [container] = pod["containers"]
        assert container["name"] == "pytorch"
        assert container["command"][:4] == ["torchrun", "--module", "controlllm.cli", "train"]
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        assert str(gpus) == job["spec"]["nprocPerNode"]
        wait = next(e for e in container["env"] if e["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
        assert int(wait["value"]) <= pod["terminationGracePeriodSeconds"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert json.dumps(job)  # No dates or other surprises of YAML.
