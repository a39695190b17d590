"""Answers of models, kept for every later evaluation: asked once, read for ever.

```
STORE/<model>/identity.json    whose answers they are
STORE/<model>/answers.jsonl    {"request": "<sha256>", "answer": ...}, appended, never changed
```
A request is all that the model read and how its answer was made; not the task, the rank or the
place in a batch. So runs on one base share the base's answers, an evaluation that was killed goes
on, and answers can be scored anew without the model.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from controlllm.common.errors import DataError
from controlllm.common.storage.files import write_json
from controlllm.common.storage.lock import cache_root, own_folder

__all__ = ["Answer", "AnswerStore", "Request", "default_store"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One thing asked of a model.

    Attributes:
        kind: "likelihood" of a continuation, "rolling" likelihood of a text, or "text" to write.
        prompt: what the model reads.
        continuation: whose likelihood is asked.
        settings: how a text is written, as sorted JSON by lm-eval's names (until, max_gen_toks,
            temperature, ...).
        sample: which of several texts on the same prompt.
        room: the longest input in tokens; longer prompts lose their beginning.
    """

    kind: str
    prompt: str
    continuation: str = ""
    settings: str = "{}"
    sample: int = 0
    room: int = 0

    @cached_property
    def key(self) -> str:
        """SHA-256 of all of it."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        log_likelihood: in nats, of a continuation or a text; None for a text to write.
        greedy: whether the continuation is what the model itself would have written.
        text: that was written, up to the first stop.
        cut_off: whether it reached the limit of tokens.
    """

    log_likelihood: float | None = None
    greedy: bool | None = None
    text: str | None = None
    cut_off: bool | None = None


def default_store() -> Path:
    """`$CONTROLLLM_CACHE/answers`, or below `~/.cache/controlllm`."""
    return Path(cache_root()).expanduser() / "answers"


class AnswerStore:
    """The answers of one model.

    Args:
        root: folder of all stores; None = they are kept in memory, for a model that goes on to
            change.
        identity: whose answers, as `identity.model_identity` gives it.

    Raises:
        DataError: the folder cannot be made or belongs to somebody else.
    """

    def __init__(self, root: str | Path | None, identity: Mapping[str, str]) -> None:
        self._answers: dict[str, Answer] = {}
        self._read_to = 0
        self._path: Path | None = None
        if root is None:
            return
        name = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:24]
        try:
            folder = own_folder(Path(root).expanduser(), "store") / name
            folder.mkdir(exist_ok=True)
            if not (folder / "identity.json").exists():
                write_json(folder / "identity.json", dict(identity))
        except OSError as error:
            raise DataError(
                f"answers cannot be kept in {root}: {error}; name another folder by --store."
            ) from error
        self._path = folder / "answers.jsonl"
        self.refresh()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: Request) -> Answer | None:
        """The answer, if it is there."""
        return self._answers.get(request.key)

    def refresh(self) -> None:
        """Read what was appended since, by whomever. A line that broke off does not count."""
        if self._path is None or not self._path.exists():
            return
        broken = 0
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                try:
                    key, answer = _parsed(line)
                except (ValueError, TypeError, KeyError, RecursionError):
                    broken += 1
                else:
                    self._answers.setdefault(key, answer)
        if broken:
            log.warning("%s: %d lines are damaged; these are asked anew.", self._path, broken)

    def add(self, pairs: Sequence[tuple[Request, Answer]]) -> None:
        """Append answers; they are on the disk when this returns.

        Raises:
            DataError: an answer is no number, or the disk is full.
        """
        for request, answer in pairs:
            value = answer.log_likelihood
            if value is not None and not math.isfinite(value):
                raise DataError(
                    f"the model's log-likelihood of {request.continuation[:60]!r} is {value}: its "
                    "weights or its precision are broken."
                )
        if self._path is not None:
            self._append(self._path, pairs)
        self.remember(pairs)

    def remember(self, pairs: Sequence[tuple[Request, Answer]]) -> None:
        """Know answers that another process writes."""
        for request, answer in pairs:
            self._answers.setdefault(request.key, answer)

    def _append(self, path: Path, pairs: Sequence[tuple[Request, Answer]]) -> None:
        try:
            with FileLock(f"{path}.lock"), path.open("ab+") as file:
                self.refresh()  # Another evaluation may have asked the same meanwhile.
                new = [pair for pair in pairs if pair[0].key not in self._answers]
                rows = ({"request": one.key, "answer": _plain(answer)} for one, answer in new)
                lines = "".join(f"{json.dumps(row)}\n" for row in rows)
                file.write((b"\n" if self._ends_torn(file) else b"") + lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}.") from error

    @staticmethod
    def _ends_torn(file: Any) -> bool:
        """Whether a writer was killed in the middle of a line."""
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) != b"\n")


def _plain(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in asdict(answer).items() if value is not None}


_FIELDS = {"log_likelihood": float, "greedy": bool, "text": str, "cut_off": bool}


def _parsed(line: bytes) -> tuple[str, Answer]:
    row = json.loads(line)
    key, values = row["request"], row["answer"]
    if not isinstance(key, str) or not isinstance(values, dict) or not values:
        raise ValueError("no answer")
    for name, value in values.items():
        if type(value) is not _FIELDS[name] or (name == "log_likelihood" and value != value):
            raise ValueError(name)
    return key, Answer(**values)
