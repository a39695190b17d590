import logging

import pytest

from controlllm.common.errors import ConfigError
from controlllm.common.packages.torchao import quiet_torchao, require_torchao


def test_a_package_that_is_not_there_is_told_with_what_asks_for_it():
    with pytest.raises(ConfigError, match=r"model\.quantize_base=nf4 needs torchao.*pip install"):
        require_torchao("torchao_that_is_not_there", "model.quantize_base=nf4")


def test_only_warnings_of_torchao_are_kept_quiet_and_only_for_the_time(caplog):
    names = ("torchao", "torch.utils._pytree", "transformers_of_a_test")

    def heard():
        caplog.clear()
        for name in names:
            logging.getLogger(name).warning("words")
        return [record.name for record in caplog.records if record.name in names]

    before = heard()
    with quiet_torchao():
        assert heard() == ["transformers_of_a_test"]
        logging.getLogger("torchao").error("an error is told")
        assert caplog.records[-1].message == "an error is told"
    assert heard() == before and "torchao" in before
