"""How a model is loaded: one config for verbs and for runs, of which it is the section `model`."""

from dataclasses import dataclass, field
from typing import Any

from controlllm.common.errors import ConfigError
from controlllm.common.facts import check_values, setting
from controlllm.common.packages.quantizers import COPY_KINDS, QUANTIZERS
from controlllm.common.settings import RUNS_CODE

__all__ = ["DTYPES", "LoadOptions"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Types that a model can be loaded in; auto = as it was saved."""


@dataclass
class LoadOptions:
    """How a model is loaded, to be used or to be trained."""

    revision: str | None = None
    """Branch, tag or commit on the Hub; of the base, where a local sidecar is loaded."""
    dtype: str = setting("auto", choices=DTYPES)
    """Type of the loaded weights; auto = as they were saved."""
    quantize_base: str | None = setting(None, choices=QUANTIZERS.names)
    """Load the base in 8 or 4 bits by bitsandbytes: bnb_int8, bnb_nf4, bnb_nf4_double."""
    quantize_copies: str | None = setting(None, choices=COPY_KINDS)
    """Hold the linear layers of the trained copies in 8 bits: int8. For inference only: nothing
    can be trained or saved from there."""
    attn_implementation: str | None = None
    """eager, sdpa, flash_attention_2, flex_attention, ...; null = what transformers chooses."""
    trust_remote_code: bool = field(default=False, metadata=RUNS_CODE)
    """Allow code that comes with the model to run."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer to use instead of the model's own."""
    device: str = setting("cpu", may_change=True)
    """Where to put the model: cpu, cuda, cuda:1, ..., or auto = a GPU if there is one."""
    base: str | None = setting(None, may_change=True)
    """Base model to use instead of the recorded one (sidecars, adapters and checkpoints)."""
    check_base: bool = setting(True, may_change=True)
    """Refuse a base whose fingerprint is not the recorded one."""
    scratch_dir: str | None = setting(None, may_change=True)
    """Where the parts that several processes wrote are joined for a while; null = the system's
    folder for temporary files (TMPDIR)."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """For the client of a remote model or base (`user`, `token`, ...; docs/hdfs.md)."""

    def __post_init__(self) -> None:
        """Check the values (ConfigError)."""
        check_values(self, "")

    def require_full_copies(self) -> None:
        """Refuse copies in few bits, for who writes what is loaded (ConfigError)."""
        if self.quantize_copies is not None:
            raise ConfigError(
                f"load.quantize_copies={self.quantize_copies}: what is loaded here is written "
                "again, and copies in few bits are for inference only; leave it out."
            )
