"""Alpha and sidecars join the hash of cached prefixes: each reuses only what it computed itself.

vLLM has no interface for it but a request's `cache_salt`, which only the caller can set; so its
function that collects what joins a block's hash is wrapped.
"""

from functools import wraps
from typing import Any

from controlllm.integrations.vllm.words import prefix_salt

__all__ = ["prefixes_are_salted", "salt_prefixes"]

_FUNCTION = "generate_block_hash_extra_keys"


def salt_prefixes() -> None:
    """Wrap vLLM's function, once in a process; one that is not there is left to `EngineChecks`."""
    from vllm.v1.core import kv_cache_utils

    plain = getattr(kv_cache_utils, _FUNCTION, None)
    if plain is None or prefixes_are_salted():
        return

    @wraps(plain)
    def salted(request: Any, start: int, *rest: Any) -> Any:
        keys, next_image = plain(request, start, *rest)
        params = request.sampling_params
        # Every further block's hash holds the first one's.
        if start == 0 and params is not None and (salt := prefix_salt(params.extra_args)):
            keys = (*(keys or ()), *salt)
        return keys, next_image

    salted.__dict__["controlllm"] = True
    setattr(kv_cache_utils, _FUNCTION, salted)


def prefixes_are_salted() -> bool:
    """Whether this process's vLLM hashes alpha and sidecars with a prefix."""
    from vllm.v1.core import kv_cache_utils

    return hasattr(getattr(kv_cache_utils, _FUNCTION, None), "controlllm")
