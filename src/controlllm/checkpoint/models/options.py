"""How a saved model is loaded, whatever form it has."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from controlllm.common.errors import ConfigError
from controlllm.common.packages.bitsandbytes import BNB_KINDS, BnbKind
from controlllm.common.registry import check_choice
from controlllm.common.settings.fields import RUNS_CODE

__all__ = ["LoadOptions"]


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class LoadOptions:
    """How a model is loaded."""

    base: str | None = None
    """Base model to use instead of the recorded one (sidecars, adapters and checkpoints)."""

    revision: str | None = None
    """Branch, tag or commit on the Hub; of the base, where a local sidecar is loaded."""

    dtype: Dtype = "auto"
    """float32, bfloat16, float16, or auto = as it was saved."""

    quantize_base: BnbKind | None = None
    """Load the base in 8 or 4 bits by bitsandbytes: bnb_int8, bnb_nf4, bnb_nf4_double."""

    device: str = "cpu"
    """Where to put the model: cpu, cuda, cuda:1, or auto = a GPU if there is one."""

    check_base: bool = True
    """Refuse a base whose fingerprint is not the recorded one."""

    trust_remote_code: bool = field(default=False, metadata=RUNS_CODE)
    """Allow code that comes with the model to run."""

    attn_implementation: str | None = None
    """eager, sdpa, flash_attention_2, flex_attention; null = what transformers chooses."""

    tokenizer: str | None = None
    """Tokenizer to use instead of the model's own."""

    scratch_dir: str | None = None
    """Where the parts that several processes wrote are joined for a while; null = the system's
    folder for temporary files (TMPDIR)."""

    storage_options: dict[str, Any] = field(default_factory=dict)
    """For the client of a remote model or base (`user`, `token`, ...; docs/hdfs.md)."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: for an unknown dtype or kind.
        """
        check_choice("dtype", self.dtype, get_args(Dtype))
        if self.quantize_base in ("int8", "nf4"):
            raise ConfigError(
                f"quantize_base={self.quantize_base!r} is made of a model that is there: leave it "
                "out here, and call controlllm.train.setup.quantize.quantize_base(model, "
                f"{self.quantize_base!r})."
            )
        if self.quantize_base is not None:
            check_choice("quantize_base", self.quantize_base, BNB_KINDS)
