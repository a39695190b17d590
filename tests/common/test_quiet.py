import logging

import pytest
from transformers.utils import logging as bars

from controlllm.common.quiet import quiet_bars, quiet_imports

LINES = [
    ("torchao", "Failed to load %s: no such library", "_C.so"),
    ("torchao.kernel.intmm", "Warning: Detected no triton, on systems without%s", " it ..."),
    ("torch.utils._pytree", "%s ... Calling register_constant() on Enum subclasses ...", "Kind"),
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm from kernels-community: %s", "x"),
    ("DeepSpeed", "Setting accelerator to CPU.%s", ""),
]


@pytest.mark.parametrize("name, line, value", LINES)
def test_only_the_known_lines_are_left_out_and_only_for_the_time(caplog, name, line, value):
    logger = logging.getLogger(name)

    def heard() -> int:
        caplog.clear()
        logger.warning(line, value)
        return len(caplog.records)

    assert heard() == 1
    with quiet_imports():
        with quiet_imports():  # of a package inside that of another one
            assert heard() == 0
        assert heard() == 0
        logger.warning("another line")
        assert caplog.records[-1].message == "another line"
        logging.getLogger("a.package").warning(line, value)
        assert caplog.records[-1].name == "a.package"
    assert heard() == 1
    assert not logger.filters


def test_bars_come_back_and_those_that_were_switched_off_do_not(monkeypatch):
    monkeypatch.setattr(bars, "_tqdm_active", True)
    with quiet_bars():
        assert not bars.is_progress_bar_enabled()
        with quiet_bars():
            assert not bars.is_progress_bar_enabled()
        assert not bars.is_progress_bar_enabled()
    assert bars.is_progress_bar_enabled()
