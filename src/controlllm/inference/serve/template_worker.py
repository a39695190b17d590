"""Renders one chat template in a process of its own, run as a file: no other module of ours.

A template is a stranger's program: it may loop for ever or fill the memory. This process may be
ended at any moment; it ends itself, too, when it takes too long or whoever asked is gone.

    python -P template_worker.py FD SECONDS MIB CHARACTERS

Over the socket FD come requests and go replies, both JSON: `{"template", "messages", "variables"}`
to `{"text"}` or `{"error"}`.
"""

import json
import math
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

__all__ = ["main"]


def _bound_memory(mib: int) -> None:
    """Let this process take so much more memory than it has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limit = now + (mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _render(request: dict, most: int) -> dict:
    try:
        rendered: Any = render_jinja_template(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["variables"],
        )
    except Exception as error:  # A template is somebody's program, and may raise anything.
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    text = rendered[0][0]
    if len(text) > most:
        return {"error": f"it wrote more than {most} characters"}
    return {"text": text}


def main() -> None:
    """Answer until nobody asks any more."""
    fd, seconds, mib, most = int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:])
    connection = Connection(fd)
    if sys.platform == "linux":
        _bound_memory(mib)
    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        signal.alarm(math.ceil(seconds) + 1)  # Ends this process, whatever it is doing.
        reply = _render(request, most)
        signal.alarm(0)
        connection.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
