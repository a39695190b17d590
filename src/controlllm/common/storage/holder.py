"""Who holds something: a process, told so that another one can say it and look whether it lives."""

import json
import os
import socket
import sys
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import takewhile
from pathlib import Path

__all__ = ["Holder"]


@dataclass(frozen=True)
class Holder:
    """A process among all that may see the same disk.

    Attributes:
        host: name of its machine or container; several may share one.
        boot: the running kernel, which no two machines share; the host's name where none tells it.
        namespace: in which its number is its own (containers have such namespaces).
        pid: its number there.
        since: when it took what it holds.
        command: how it was started, up to its first option (options may hold secrets).
    """

    host: str
    boot: str
    namespace: str
    pid: int
    since: str
    command: str

    @classmethod
    def this(cls) -> "Holder":
        """This process, now."""
        host = socket.gethostname()
        name = Path(sys.argv[0]).name
        words = ["controlllm" if name == "__main__.py" else name, *sys.argv[1:]]
        if words[1:2] == ["--config"]:
            del words[1]
        return cls(
            host=host,
            boot=_boot() or host,
            namespace=_namespace(),
            pid=os.getpid(),
            since=datetime.now().astimezone().isoformat(" ", "seconds"),
            command=" ".join(takewhile(lambda word: not word.startswith("-"), words)),
        )

    @classmethod
    def parse(cls, text: str) -> "Holder | None":
        """What `to_text` wrote; None for anything else."""
        try:
            values = json.loads(text)
            holder = cls(**values)
        except (TypeError, ValueError):
            return None
        sound = all(isinstance(getattr(holder, f.name), f.type) for f in fields(cls))  # type: ignore[arg-type]
        return holder if sound else None

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @property
    def is_on_this_machine(self) -> bool:
        """Whether it runs, or ran, under the kernel of this process: they share its locks."""
        return self.boot == (_boot() or socket.gethostname())

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended; never of a process whose number means nothing here."""
        if not self.is_on_this_machine or self.namespace != _namespace():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} (`{self.command}`)"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
