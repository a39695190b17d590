"""Fixtures for every room. Tests run offline, each process on one thread."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from tests.tiers import mark_slow
from tests.webhdfs import WebHdfs
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)
# Its thread would wake up with locks in hand while tests fork.
tqdm.monitor_interval = 0
# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("controlllm", deadline=None)
hypothesis.settings.load_profile("controlllm")

ROOT = Path(__file__).resolve().parents[1]
GPU_TESTS_ON = "CONTROLLLM_GPU_TESTS_ON"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BYTE_OFFSET = 3  # ids 0, 1, 2 of the byte tokenizer are <pad>, <s>, </s>


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no device for them; files that take long come first.

    Before all others those of several processes: the one worker that gets them imports what they
    need once, and the last tests to end are short. A file's tests stay together, or what they share
    would be made twice.
    """
    mark_slow(items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (
            not item.nodeid.startswith("tests/distributed/"),
            item.path not in slow,
        )
    )
    if torch.cuda.is_available() or GPU_TESTS_ON in os.environ:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def own_process() -> None:
    """What others left in this process does not matter: log levels, steps, the float mode."""
    logging.getLogger("controlllm").setLevel(logging.NOTSET)
    torch.set_flush_denormal(False)
    if accelerate := sys.modules.get("accelerate.state"):
        accelerate.GradientState._reset_state()


@pytest.fixture(scope="session")
def gpu() -> str:
    """The device of tests marked `gpu`; another one if CONTROLLLM_GPU_TESTS_ON says so (`cpu`)."""
    return os.environ.get(GPU_TESTS_ON, "cuda")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is absent")
    return folder


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> Path:
    """A real pre-trained Llama of 260k parameters, in Hugging Face form (read only)."""
    return shared_data / "checkpoints" / "stories260k-hf"


@pytest.fixture(scope="session")
def pico_llama() -> Callable[..., PreTrainedModel]:
    """`pico_llama(seed=0, **config)` makes a tiny random Llama; equal seeds give equal weights."""

    def make(seed: int = 0, **overrides: Any) -> PreTrainedModel:
        settings = {
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,
        } | overrides
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**settings)).eval()

    return make


@pytest.fixture(autouse=True)
def shared_tokenizer_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """A chat template that one test leaves on the shared tokenizer would decide another's fate."""
    yield
    if "pico_tokenizer" in request.fixturenames:
        tokenizer = request.getfixturevalue("pico_tokenizer")
        left, tokenizer.chat_template = tokenizer.chat_template, None
        assert left is None, "this test left a chat template on the shared tokenizer: copy it"


@pytest.fixture(scope="session")
def pico_tokenizer() -> PreTrainedTokenizerBase:
    """One token per UTF-8 byte (id = byte + 3), with <pad> 0, <s> 1, </s> 2; adds <s> by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = _byte_alphabet()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {alphabet[byte]: byte + BYTE_OFFSET for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def chatty(
    pico_llama: Callable[..., PreTrainedModel], pico_tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and tokenizer with the two marks of chatml, and its template."""
    tokenizer = deepcopy(pico_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return pico_llama(vocab_size=261), tokenizer


@pytest.fixture
def hdfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebHdfs]:
    """A WebHDFS server over real sockets; what is fetched from it goes below `tmp_path`/cache."""
    from controlllm.checkpoint.mirror import upload

    monkeypatch.setenv("CONTROLLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(upload, "_PAUSE_SECONDS", 0.01)
    with WebHdfs(tmp_path / "hdfs") as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skipped where this user may not mount one."""
    place = tmp_path / "small_disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _byte_alphabet() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
