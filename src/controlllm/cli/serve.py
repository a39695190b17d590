"""`controlllm serve`: an OpenAI-compatible server, the dial at every client's hand."""

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from controlllm.checkpoint import LoadOptions
from controlllm.cli.kit.parsing import parse_options
from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.text.progress import stage
from controlllm.inference import vllm_server
from controlllm.inference.engine import EngineSettings
from controlllm.inference.engine.opening import ENGINES, EngineSpec, open_engine
from controlllm.inference.serve.settings import ServeLimits, ServeSettings, is_loopback

__all__ = ["KEY_VARIABLE", "ServeOptions", "run"]

KEY_VARIABLE = "CONTROLLLM_API_KEY"
"""The environment variable that may hold the server's key."""
VLLM = "vllm"
_LONGEST_KEY = 4096


@dataclass
class ServeOptions:
    """Serve a model by OpenAI's protocol: chats, completions, the dial in every request.

    The key that clients must send stands in a file (--api_key_file) or in the environment variable
    CONTROLLLM_API_KEY, never on the command line, which others on the machine can read.
    """

    model: str
    """Run folder, checkpoint, sidecar, model folder or Hub name."""
    name: str = "tuned"
    """What clients call what was trained, where there is one sidecar; the base is called base."""
    sidecars: dict[str, str] = field(default_factory=dict)
    """Several sidecars on the base that MODEL is: --sidecars.maths FOLDER --sidecars.zh FOLDER;
    a name on the Hub may have its revision behind an @."""
    alphas: list[float] = setting(factory=list, at_most=1)
    """Alphas for which each sidecar is listed as a model of its own (maths@0.3)."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a key."""
    port: int = setting(8000, at_most=65535)
    """Port to listen on; 0 = a free one."""
    api_key_file: str | None = None
    """File that holds the key."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Names by which clients may call the server, beside localhost and addresses."""
    allowed_origins: list[str] = field(default_factory=list)
    """Web pages elsewhere that may ask, as https://name[:port]."""
    chat_template: str | None = None
    """plain, chatml, a Jinja file or text; none = no chat, texts are continued; null = the one
    saved with the model, or none."""
    engine: str = setting("local", choices=lambda: [*ENGINES.names(), VLLM])
    """Who computes; vllm = vLLM's own server takes over, for a model folder (form full)."""
    vllm_args: list[str] = field(default_factory=list)
    """Further options of `vllm serve`, such as [--tensor-parallel-size, "2"]."""
    compute: EngineSettings = field(default_factory=EngineSettings)
    """How much is taken on at a time."""
    limits: ServeLimits = field(default_factory=ServeLimits)
    """What one request may ask for."""
    load: LoadOptions = field(default_factory=lambda: LoadOptions(device="auto"))
    """How the model is loaded."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "")


def run(argv: list[str]) -> None:
    """Load the model and serve it until a signal says to stop."""
    options = parse_options(ServeOptions, argv, "serve")
    settings = ServeSettings(
        options.host,
        options.port,
        _key(options.api_key_file),
        tuple(options.allowed_hosts),
        tuple(options.allowed_origins),
        tuple(options.alphas),
        options.limits,
    )
    if options.engine == VLLM:
        vllm_server.serve(options.model, _launch(options, settings))
        return
    if options.vllm_args:
        raise ConfigError(f"vllm_args={options.vllm_args} needs --engine {VLLM}.")
    make_app, serve = _server()
    spec = EngineSpec(
        options.model,
        options.name,
        options.sidecars,
        options.load,
        options.chat_template,
        options.compute,
    )
    with stage(f"loading {options.model}"):
        engine = open_engine(options.engine, spec)
    app = make_app(engine, settings)
    serve(app, lambda host, port: print(_greeting(app.state.service, host, port), flush=True))


def _launch(options: ServeOptions, settings: ServeSettings) -> vllm_server.Launch:
    """What of the options reaches vLLM's server.

    Raises:
        ConfigError: one was given that would not.
    """
    if options.sidecars:
        named = " ".join(f"--sidecars.{name} {place}" for name, place in options.sidecars.items())
        raise ConfigError(
            f"--engine {VLLM} takes several sidecars from one folder, base and all. Write it: "
            f"controlllm export {options.model} FOLDER {named}, then controlllm serve FOLDER "
            f"--engine {VLLM}."
        )
    plain = ServeOptions(options.model)
    reached = {"model", "name", "host", "port", "api_key_file", "engine", "vllm_args", "compute"}
    given = [f.name for f in fields(plain) if getattr(options, f.name) != getattr(plain, f.name)]
    lost = sorted(set(given) - reached)
    running = EngineSettings(max_running=options.compute.max_running)
    if lost or options.compute != running:
        raise ConfigError(
            f"--engine {VLLM} does not read {', '.join(lost) or 'compute but for max_running'}: "
            "vLLM's server has options of its own (--vllm_args)."
        )
    return vllm_server.Launch(
        settings.host,
        settings.port,
        settings.api_key,
        options.name if "name" in given else None,
        max_running=options.compute.max_running if "compute" in given else None,
        more=options.vllm_args,
    )


def _server() -> tuple[Any, Any]:
    try:
        from controlllm.inference.serve import make_app, serve

        return make_app, serve
    except ImportError as error:
        raise ConfigError(
            f"the server needs {error.name}: pip install 'controlllm[serve]'."
        ) from error


def _key(file: str | None) -> str | None:
    """The key in the file, else in the environment.

    Raises:
        ConfigError: the file cannot be read, or others may read it.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        path = Path(file)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{file}: others may read this key; run `chmod 600 {file}`.")
        with path.open(encoding="utf-8") as text:
            key = text.read(_LONGEST_KEY).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file={file} cannot be read: {error}.") from error
    if not key:
        raise ConfigError(f"api_key_file={file} is empty; write a key into it.")
    return key


def _greeting(service: Any, host: str, port: int) -> str:
    """What the terminal shows when the server listens."""
    settings, names = service.settings, service.table.names
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    key = "" if settings.api_key is None else f' -H "Authorization: Bearer ${KEY_VARIABLE}"'
    chats, has_dial = service.prompts.can_chat, service.table.has_dial
    path = "chat/completions" if chats else "completions"
    asked = {"messages": [{"role": "user", "content": "Hello"}]} if chats else {"prompt": "Once"}
    asked = {"model": names[min(1, len(names) - 1)]} | asked
    fields = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    extra = ', extra_body={"alpha": 0.5}' if has_dial else ""
    body = json.dumps(asked | ({"alpha": 0.5} if has_dial else {}))
    lines = [f"Serving at {url} (Ctrl-C ends it); models: {', '.join(names)}"]
    if not chats:
        lines.append("No chat template: texts are continued, there is no chat.")
    if not is_loopback(settings.host):
        lines.append("Not encrypted: put a proxy that speaks TLS before it on networks of others.")
    lines += [
        f"  curl {url}/v1/{path}{key} -H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
        f'  openai.OpenAI(base_url="{url}/v1", api_key=...).{path.replace("/", ".")}.create(',
        f"    {fields}{extra})",
    ]
    return "\n".join(lines)
