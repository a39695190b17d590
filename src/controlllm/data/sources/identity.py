"""What tells files apart: a fingerprint of their content, and a stamp of when they were touched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from controlllm.data.config.source_config import SourceConfig
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.trouble import reading

__all__ = ["Identity", "digest", "identify"]

SAMPLE_BYTES = 2**16
"""Size of the samples of a large file that are hashed."""

SAMPLED_FILES, SAMPLED_REMOTE_FILES = 32, 2
"""Files of a large source of which samples are hashed; of all others the sizes count."""


@dataclass(frozen=True)
class Identity:
    """See `Blocks.fingerprint` and `Blocks.stamp`."""

    fingerprint: str
    stamp: str


def digest(*parts: Any) -> str:
    """A hash of texts, numbers and bytes."""
    hasher = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()


def identify(files: Sequence[SourceFile], source: SourceConfig, *more: Any) -> Identity:
    """The identity of files that are read with the options of a source.

    Files in memory are hashed whole. Of others the sizes are, and samples of some of them: their
    start, middle and end.

    Args:
        files: in order.
        source: `text_unit` and `max_row_bytes` change the rows.
        *more: whatever else the rows and the cuts between blocks depend on.

    Raises:
        DataError: a file cannot be read.
    """
    options = (source.text_unit, source.max_row_bytes, *more)
    sizes = [(file.file_type, file.size, file.packed) for file in files]
    content = digest(options, sizes, *(piece for file in _chosen(files) for piece in _pieces(file)))
    return Identity(content, digest([(file.address, file.size, file.stamp) for file in files]))


def _chosen(files: Sequence[SourceFile]) -> Sequence[SourceFile]:
    """All files that are in memory, else the first, the last and some between them."""
    if all(file.content is not None for file in files):
        return files
    most = SAMPLED_FILES if files[0].filesystem is None else SAMPLED_REMOTE_FILES
    if len(files) <= most:
        return files
    last = len(files) - 1
    return [files[last * i // (most - 1)] for i in range(most)]


def _pieces(file: SourceFile) -> Iterator[bytes]:
    if file.content is not None:
        yield file.content
        return
    if not file.ranged or file.size is None:
        return
    starts = {0, max(0, file.size - SAMPLE_BYTES)}
    if file.is_local:
        starts.add(max(0, file.size // 2 - SAMPLE_BYTES // 2))
    with reading(file.address), file.open_raw(SAMPLE_BYTES) as opened:
        for start in sorted(starts):
            opened.seek(start)
            yield opened.read(SAMPLE_BYTES)
