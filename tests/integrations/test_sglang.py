"""What of the SGLang package needs no SGLang; the rest has not been run."""

import subprocess
import sys

import pytest

from controlllm import expand
from controlllm.common.errors import ConfigError
from controlllm.integrations.sglang.checks import check


def test_importing_the_package_imports_no_sglang():
    code = "import sys, controlllm.integrations.sglang.checks; assert 'sglang' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("expansion", "engine", "reason"),
    [
        ({"expand_ends": True}, (None, 1), "expand_ends=True: .*plain heads"),
        ({"relaxed_norm": 0.5}, (None, 1), r"relaxed_norm=0\.5"),
        ({}, ("fp8", 1), "quantisation"),
        ({}, (None, 2), "pipeline parallelism"),
    ],
)
def test_what_would_give_other_tokens_is_refused(pico_llama, expansion, engine, reason):
    config = expand(pico_llama(), num_blocks=1, **expansion).config
    with pytest.raises(ConfigError, match=reason):
        check(config, *engine)


def test_what_the_backend_can_do_passes(pico_llama):
    for structure in ("concat", "stack"):
        check(expand(pico_llama(), num_blocks=1, structure=structure).config, None, 1)
