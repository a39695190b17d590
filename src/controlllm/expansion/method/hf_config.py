"""The expanded model's config, as `transformers` knows it."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from controlllm.common.errors import ConfigError
from controlllm.expansion.method.expansion_config import (
    MODEL_TYPE,
    SIDECAR_NAME,
    SIDECARS_TYPE,
    ExpansionConfig,
)

__all__ = ["ControlLLMConfig", "SidecarsConfig"]


class ControlLLMConfig(PreTrainedConfig):
    """Config of an expanded model: the base's config, how it was expanded, and which base it was.

    Args:
        text_config: the base model's config with `num_hidden_layers` = L + n (so that caches and
            serving engines that ask `get_text_config()` size themselves rightly), as a config or a
            dict.
        expansion: `ExpansionConfig`'s values.
        base: what is known of the base: `name_or_path`, `revision`, `num_hidden_layers` (L),
            `vocab_size`, `fingerprint`.
        parents: the stages that it was trained after, the oldest first (`files.lineage`).
    """

    model_type = MODEL_TYPE
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    register_model: ClassVar[Callable[[], None]] = staticmethod(lambda: None)
    """Lets `AutoModelForCausalLM` know the model's class, once a config could ask for it; the
    package sets it. As remote code there is nothing to do: transformers has found the class."""

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        expansion: dict[str, Any] | None = None,
        base: dict[str, Any] | None = None,
        parents: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        if text_config is not None:
            kwargs.setdefault(
                "tie_word_embeddings", getattr(text_config, "tie_word_embeddings", False)
            )
            kwargs.setdefault("dtype", text_config.dtype)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                kwargs.setdefault(key, getattr(text_config, key, None))
        super().__init__(**kwargs)
        type(self).register_model()
        # After super(), which would reset the attention implementation of every sub-config.
        self.text_config = text_config
        if text_config is not None and self._attn_implementation is not None:
            text_config._attn_implementation = self._attn_implementation
        self.expansion = dict(expansion or {})
        self.base = dict(base or {})
        self.parents = list(parents or [])

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Only where this class runs as remote code; see `ControlLLMForCausalLM`."""
        if not cls.__module__.startswith("controlllm."):
            super().register_for_auto_class(auto_class)

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> PreTrainedConfig:
        """The decoder's own config, where the base is one of text and images, too."""
        found = super().get_text_config(decoder=decoder, encoder=encoder)
        if found is self:
            return found
        return found.get_text_config(decoder=decoder, encoder=encoder)

    def expansion_config(self) -> ExpansionConfig:
        """How the base was expanded."""
        return ExpansionConfig.from_dict(self.expansion)

    def base_config(self) -> PreTrainedConfig:
        """The base model's own config again: L layers, its own vocabulary.

        Raises:
            ConfigError: if this config names no base.
        """
        if self.text_config is None or "num_hidden_layers" not in self.base:
            raise ConfigError(
                "This controlllm config has no text_config or no base; it was not written by "
                "expand()."
            )
        config = copy.deepcopy(self.text_config)
        decoder = config.get_text_config(decoder=True)
        grown, depth = decoder.num_hidden_layers, self.base["num_hidden_layers"]
        decoder.num_hidden_layers = depth
        for key, values in decoder.to_dict().items():
            if "layer" in key and isinstance(values, list) and len(values) == grown:
                setattr(decoder, key, values[:depth])
        decoder.vocab_size = self.base.get("vocab_size", decoder.vocab_size)
        return config


class SidecarsConfig(ControlLLMConfig):
    """Config of a base with several named sidecars.

    Args:
        sidecars: `name` and `expansion` (`ExpansionConfig`'s values) of each. A list: what is
            written for a sidecar goes by its place in it.
        **kwargs: what `ControlLLMConfig` takes, without `expansion`.
    """

    model_type = SIDECARS_TYPE

    def __init__(self, sidecars: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sidecars = [dict(one) for one in sidecars or []]

    def by_name(self) -> dict[str, dict[str, Any]]:
        """How the base was expanded for each sidecar (`ExpansionConfig`'s values), in order.

        Raises:
            ConfigError: if there is none, two have the same name, or one has no settings or cannot
                be called so.
        """
        for one in self.sidecars:
            name = one.get("name")
            if not isinstance(name, str) or not SIDECAR_NAME.fullmatch(name):
                raise ConfigError(f"sidecars: {name!r} cannot be a sidecar's name.")
            if not isinstance(one.get("expansion"), dict):
                raise ConfigError(f"sidecars: {name} has no `expansion`.")
        named = {one["name"]: one["expansion"] for one in self.sidecars}
        if not named or len(named) < len(self.sidecars):
            names = ", ".join(one["name"] for one in self.sidecars) or "none"
            raise ConfigError(f"sidecars: {names}; allowed: one or several, of different names.")
        return named
