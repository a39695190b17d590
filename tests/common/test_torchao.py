import pytest

from controlllm.common.errors import ConfigError
from controlllm.common.quiet import require_package


def test_a_package_that_is_not_there_is_told_with_what_asks_for_it():
    with pytest.raises(ConfigError, match=r"model\.quantize_base=nf4 needs torchao.*pip install"):
        require_package("torchao_that_is_not_there", "model.quantize_base=nf4")
