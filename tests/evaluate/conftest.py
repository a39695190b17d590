import pytest


@pytest.fixture
def documents() -> list[list[int]]:
    """Byte-tokenizer documents of different lengths, each beginning with <s>."""
    texts = ["a cat", "two dogs ran", "x", "the end of it"]
    return [[1, *(byte + 3 for byte in text.encode())] for text in texts]
