"""Large sources that are quick to write: here a few MiB are large."""

from collections.abc import Iterator

import pytest

from controlllm.data.sources import opening


@pytest.fixture(autouse=True, scope="module")
def few_bytes_are_many() -> Iterator[None]:
    """Half of what counts as small for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "SMALL_BYTES", 4 * 2**20)
        yield
