"""How the server listens, and how much it takes from a client before any work is done."""

import ipaddress
from dataclasses import dataclass, field

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.settings import LONGEST_SECONDS, TINY

__all__ = ["ServeLimits", "ServeSettings", "is_loopback"]


@dataclass
class ServeLimits:
    """What one request may ask for, and how long clients may take."""

    body_bytes: int = setting(1 << 20, at_least=1)
    """Largest body of a request; a larger one is refused before it is read to its end."""

    messages: int = setting(256, at_least=1)
    """Most messages of a conversation."""

    prompt_tokens: int = setting(8192, at_least=1)
    """Longest prompt, in tokens; never more than the model's context."""

    max_tokens: int = setting(2048, at_least=1)
    """Most tokens of one answer; chats that name no number may use all of it."""

    choices: int = setting(8, at_least=1)
    """Most answers of one request (n times its prompts)."""

    stops: int = setting(8)
    """Most stop texts."""

    stop_chars: int = setting(256, at_least=1)
    """Longest stop text, in characters."""

    template_seconds: float = setting(5.0, at_least=TINY, at_most=LONGEST_SECONDS)
    """Longest time a chat template may run; then its process is ended."""

    template_mib: int = setting(512, at_least=1)
    """Memory that a chat template may take, in MiB."""

    connections: int = setting(256, at_least=1)
    """Most open connections; requests on further ones are refused."""

    client_seconds: float = setting(30.0, at_least=TINY, at_most=LONGEST_SECONDS)
    """Longest time in which a client must have sent its request, and take what is sent to it."""

    stop_seconds: float = setting(30.0, at_most=LONGEST_SECONDS)
    """When the server is asked to stop, running requests have so long to finish."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "limits")


@dataclass
class ServeSettings:
    """How the server listens.

    Attributes:
        host: the address to listen on.
        port: the port; 0 = a free one.
        api_key: what clients must know; None = anybody who reaches the address may ask.
        allowed_hosts: names by which the server may be called, beside localhost and addresses.
        allowed_origins: web pages of other origins that may ask, as `https://host[:port]`.
        alphas: for which each sidecar gets a name of its own (`maths@0.3`).
        limits: what one request may ask for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    alphas: tuple[float, ...] = ()
    limits: ServeLimits = field(default_factory=ServeLimits)

    def __post_init__(self) -> None:
        """Check that others are not let in without a key.

        Raises:
            ConfigError: the address is not this machine's own, and there is no key; or a key that
                cannot be sent.
        """
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host}: others could use the server. Give it a key (api_key_file, or "
                "the environment variable CONTROLLLM_API_KEY), or listen on 127.0.0.1."
            )
        key = self.api_key
        if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable()):
            raise ConfigError("the API key must have at least 8 characters, printable ASCII.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
