import pytest

from controlllm import expand
from controlllm.cli.serve import KEY_VARIABLE, run
from controlllm.common.errors import ConfigError
from controlllm.inference import vllm_server
from controlllm.inference.vllm_server import Launch

ASK = ["--engine", "vllm"]


@pytest.fixture
def launched(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    calls = []
    monkeypatch.setattr(vllm_server, "serve", lambda *args: calls.append(args))
    return calls


def test_what_was_said_reaches_vllm(launched, tmp_path):
    key = tmp_path / "key"
    key.write_text("a-long-secret\n")
    key.chmod(0o600)
    said = ["--host", "0.0.0.0", "--port", "9", "--api_key_file", str(key), "--name", "maths"]
    more = ["--compute.max_running", "3", "--vllm_args", '["--tensor-parallel-size", "2"]']
    run(["folder", *ASK, *said, *more])
    wanted = Launch(
        "0.0.0.0",
        9,
        "a-long-secret",
        "maths",
        max_running=3,
        more=["--tensor-parallel-size", "2"],
    )
    assert launched == [("folder", wanted)]


def test_what_was_not_said_is_left_to_vllm(launched):
    run(["folder", *ASK])
    assert launched == [("folder", Launch(more=[]))]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (["--chat_template", "chatml"], "chat_template"),
        (["--alphas", "[0.3]"], "alphas"),
        (["--limits.max_tokens", "5"], "limits"),
        (["--compute.max_waiting", "5"], "compute but for max_running"),
        (["--load.dtype", "bfloat16"], "load"),
    ],
)
def test_what_vllm_would_not_read_is_refused(launched, said, named):
    with pytest.raises(ConfigError, match=f"does not read {named}"):
        run(["folder", *ASK, *said])
    assert launched == []


def test_several_sidecars_are_refused_with_the_command_that_makes_one_folder(launched):
    with pytest.raises(ConfigError, match=r"export base FOLDER --sidecars.maths a --sidecars.zh b"):
        run(["base", *ASK, "--sidecars.maths", "a", "--sidecars.zh", "b"])
    assert launched == []


def test_others_are_not_let_in_without_a_key(launched):
    with pytest.raises(ConfigError, match="Give it a key"):
        run(["folder", *ASK, "--host", "0.0.0.0"])


def test_options_of_vllm_need_vllm(pico_llama, tmp_path):
    expand(pico_llama(), num_blocks=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="needs --engine vllm"):
        run([str(tmp_path), "--vllm_args", "[--disable-log-requests]"])
