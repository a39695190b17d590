"""Fixtures for what other libraries do with an expanded model."""

import pytest


@pytest.fixture(scope="session")
def base_folder(pico_llama, tmp_path_factory):
    """A tiny Llama on disk, which TRL can load a second time.

    One token in four ends an answer, so that answers are of several lengths.
    """
    folder = tmp_path_factory.mktemp("base")
    model = pico_llama()
    model.generation_config.eos_token_id = [2, *range(195, 259)]
    model.save_pretrained(folder)
    return folder
