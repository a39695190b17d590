"""vLLM's own server on a saved folder, for `controlllm serve --engine vllm`.

It speaks OpenAI's protocol by itself; requests choose alpha in `vllm_xargs`. This process becomes
it, so that signals, logs and the exit code are vLLM's own.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from controlllm.checkpoint.models.locate import Kind, locate
from controlllm.common.errors import ConfigError

__all__ = ["Launch", "serve", "server_command", "server_environment"]


@dataclass(frozen=True)
class Launch:
    """How vLLM's server is to listen, and how much it takes on.

    Attributes:
        host: the address to listen on.
        port: the port.
        api_key: what clients must know; None = anybody who reaches the address may ask.
        name: what clients call the model; None = its folder's name.
        context: longest prompt and answer together, in tokens; None = as long as the model knows.
        max_running: requests that are written at the same time; None = vLLM's own limit.
        more: further options of `vllm serve`, as they are written on its command line.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    name: str | None = None
    context: int | None = None
    max_running: int | None = None
    more: Sequence[str] = ()


def serve(folder: str | Path, launch: Launch) -> None:
    """Become vLLM's server; this call does not return.

    Args:
        folder: a model saved in the form `full`, or a plain one.
        launch: how it listens.

    Raises:
        ConfigError: vLLM is not installed, or the folder is none that it can serve.
    """
    if find_spec("vllm") is None:
        raise ConfigError(
            "--engine vllm needs vLLM in this environment: pip install vllm (docs/integrations/"
            "vllm.md). `--engine transformers` needs nothing more."
        )
    command = server_command(folder, launch)
    os.execve(command[0], command, server_environment(launch))


def server_command(folder: str | Path, launch: Launch) -> list[str]:
    """The command line of vLLM's server; the key is not in it, where others could read it.

    Raises:
        ConfigError: the folder is none that vLLM can serve.
    """
    path = Path(folder)
    kind = locate(path).kind
    if kind not in (Kind.EXPANDED, Kind.PLAIN):
        raise ConfigError(
            f"{path}: vLLM serves whole models, and this is a {kind.value}. Write one: "
            f"controlllm export {path} FOLDER --form full, then controlllm serve FOLDER "
            "--engine vllm."
        )
    options = {
        "--host": launch.host,
        "--port": launch.port,
        "--served-model-name": launch.name or path.resolve().name,
        "--max-model-len": launch.context,
        "--max-num-seqs": launch.max_running,
    }
    given = [str(part) for item in options.items() if item[1] is not None for part in item]
    start = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(path)]
    return [*start, *given, *launch.more]


def server_environment(launch: Launch) -> Mapping[str, str]:
    """What vLLM's server reads from its environment: the key, where there is one."""
    return os.environ | ({} if launch.api_key is None else {"VLLM_API_KEY": launch.api_key})
