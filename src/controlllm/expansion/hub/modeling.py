"""The expanded model: one `PreTrainedModel` that holds any decoder-only base."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from controlllm.common.adapters import remove_adapters
from controlllm.common.errors import ModelError
from controlllm.common.forwarding import Forwarding
from controlllm.expansion.hub.outputs import run_merged
from controlllm.expansion.method.ends import ExpandedHead, grow_ends, set_vocab_size
from controlllm.expansion.method.hf_config import ControlLLMConfig
from controlllm.expansion.method.injection import ClaimGradient
from controlllm.expansion.method.slots import check_cache, note_cache, spoil_cache
from controlllm.expansion.method.terms import DivergenceTerms
from controlllm.expansion.surgery.dial import Dial
from controlllm.expansion.surgery.install import Expansion, install, remove, set_trainable
from controlllm.expansion.surgery.quantised import quantised_layers
from controlllm.expansion.surgery.recording import Probed

__all__ = ["AUTO_MAP", "ControlLLMForCausalLM"]

AUTO_MAP = {
    "AutoConfig": "modeling_controlllm.ControlLLMConfig",
    "AutoModel": "modeling_controlllm.ControlLLMModel",
    "AutoModelForCausalLM": "modeling_controlllm.ControlLLMForCausalLM",
}
"""Tells transformers where in a saved folder the code of the classes is."""


class ControlLLMForCausalLM(Dial, Probed, Forwarding, PreTrainedModel, GenerationMixin):
    """A decoder-only model whose blocks (some of them) run beside trainable copies.

    Made by `expand`, `load_sidecar` or `from_pretrained`. Everything that it does not define itself
    is the base's: `model.lm_head`, `model.model` and the like give the base's parts, so that tools
    find what they look for.

    Args:
        config: the expanded model's config.
        base: the model to expand, taken over and changed in place; None = built from the config,
            untrained.
    """

    config_class = ControlLLMConfig
    auto_map: ClassVar[dict[str, str]] = AUTO_MAP
    base_model_prefix = "base"
    forwards_to = "base"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # Of what trains nothing is quantised, whatever the base is: trainers need not refuse it.
    is_quantized = False
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["ConcatBlock", "StackBlock", "SharedBlock"]  # noqa: RUF012  # as transformers declares it

    def __init__(self, config: ControlLLMConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self._holds_weights = base is not None
        self.base: Any = base if base is not None else _build_base(config)
        self._expand()
        config.text_config = self.base.config
        self.register_forward_pre_hook(_begin_forward, with_kwargs=True)
        self.register_forward_hook(_end_forward, always_call=True)
        self.post_init()

    def _expand(self) -> None:
        """Put the expanded parts into the base, as the config says."""
        self._expansion = install(self.base, self.config.expansion_config())
        self._apply_dial(self.expansion.dial)
        vocab_size = self.config.base.get("grown_vocab_size")
        if vocab_size is not None:
            self.resize_token_embeddings(vocab_size)

    @property
    def _installed(self) -> Expansion:
        """What stands in the base: its own expansion, and what earlier sidecars have there."""
        return self._expansion

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `transformers` does it; its loader makes all parameters trainable, so freeze again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        set_trainable(model.base, model._expansion.trainable)
        return loaded

    def init_weights(self) -> None:
        """Initialise what has no weights yet; a base that was handed over keeps its own."""
        if self._holds_weights:
            self.tie_weights(recompute_mapping=False)
        else:
            super().init_weights()

    # ------------------------------------------------------------------------------------------
    # forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base's forward on the expanded blocks.

        The arguments that are named here are those that `generate` and trainers look for in a
        signature; the base gets those that are given.

        Args:
            input_ids: (B, T); or give `inputs_embeds`.
            attention_mask: (B, T), 1 for real tokens.
            position_ids: (B, T); None = counted by the base.
            past_key_values: the KV cache, with a slot for every branch.
            inputs_embeds: (B, T, D), instead of `input_ids`.
            labels: (B, T), unshifted, -100 = no target. When training, the loss then includes the
                divergence.
            output_hidden_states: give the L + 1 merged states.
            return_dict: False gives a tuple.
            logits_to_keep: compute logits of the last so many positions only.
            **kwargs: all else that the base's forward takes.

        Returns:
            The base's output class. `loss` is the base's, plus weight * divergence when training.
        """
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            "logits_to_keep": logits_to_keep,
        }
        inputs = {key: value for key, value in named.items() if value is not None} | kwargs
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        with self._state.reading(inputs):
            output = self._run(inputs, output_hidden_states)
            self._forbid_added_tokens(output)
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _run(self, inputs: dict[str, Any], hidden_states: bool | None) -> Any:
        """Run the base; where there are labels to train on, its loss includes the divergence."""
        call = partial(self.base, **self._known_to_base(inputs), return_dict=True)
        run = partial(run_merged, call, self.get_decoder(), self._installed, hidden_states)
        if "labels" not in inputs or not self.training or self._state.terms is not None:
            return run()
        with self._state.claiming() as claim, self._state.collecting() as terms:
            output = run()
        penalty = self._state.penalty(terms, inputs)
        output["loss"] = output.loss + ClaimGradient.apply(penalty, claim).to(output.loss.device)
        return output

    def _forbid_added_tokens(self, output: Any) -> None:
        """Where the model is the base, logit -inf for added tokens, though the base caps logits."""
        head = self._installed.ends.get("head")
        if isinstance(head, ExpandedHead):
            output["logits"] = head.forbid_added(output.logits)

    def _known_to_base(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Leave out positions for a base that has none: `generate` makes them for every model."""
        if "position_ids" in inspect.signature(self.base.forward).parameters:
            return inputs
        return {key: value for key, value in inputs.items() if key != "position_ids"}

    # ------------------------------------------------------------------------------------------
    # divergence

    @contextmanager
    def explicit_divergence(self) -> Iterator[DivergenceTerms]:
        """Collect the divergence instead of injecting its gradient: the caller adds it to its loss.

        Yields:
            The terms, filled by each forward pass inside (the last one counts).
        """
        with self._state.collecting() as terms:
            yield terms

    @property
    def divergence(self) -> dict[int, float]:
        """Mean divergence per layer in the last training forward pass, detached; for logging."""
        return self._state.means()

    @property
    def gradient_accumulation_steps(self) -> int | None:
        """k, for foreign loops that compute a loss of their own, divide it by k and do not say so.

        None = as accelerate knows it, else 1. Loops that give `labels` and train on `output.loss`,
        or pass `num_items_in_batch`, need not set it.
        """
        return self._state.gradient_accumulation_steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, steps: int | None) -> None:
        self._state.gradient_accumulation_steps = steps

    # ------------------------------------------------------------------------------------------
    # parts

    @property
    def sidecars(self) -> tuple[str, ...]:
        """The names of its sidecars; none where one expansion is its own (`load_sidecars`)."""
        return ()

    def trainable_parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named trainable parameters: of expanded parts, interpolators, and the base."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {
            "expanded": [],
            "interpolator": [],
            "base": [],
        }
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parts = name.split(".")
                group = next((g for g in ("interpolator", "expanded") if g in parts), "base")
                groups[group].append((name, parameter))
        return groups

    @property
    def base_model(self) -> nn.Module:
        """The base's backbone without its head: what tools that compute logits themselves call."""
        return self.base.base_model

    def get_decoder(self) -> nn.Module:
        """The base's stack of blocks."""
        return self.base.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LM head."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the LM head."""
        self.base.set_output_embeddings(new_embeddings)

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As the base does it; `generate` reads in this signature that embeddings may be given."""
        return self.base.prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Add tokens: their rows live in the expanded ends, the base keeps its own vocabulary.

        New rows start as the mean of the base's (as `transformers` would draw them around it).

        Raises:
            ModelError: without `expand_ends` (the frozen base would have to change), or for fewer
                tokens.
        """
        if new_num_tokens is None:
            return self.get_input_embeddings()
        ends = self._expansion.ends
        if not ends:
            raise ModelError(
                "Adding tokens would change the frozen base. Expand with expand_ends=True (their "
                "rows then live in the expanded ends), or resize the base before expanding it."
            )
        embedding, head = ends["embedding"].expanded, ends["head"].expanded
        assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
        if new_num_tokens < embedding.num_embeddings:
            raise ModelError(
                f"new_num_tokens={new_num_tokens} would drop tokens; "
                f"there are {embedding.num_embeddings}."
            )
        grow_ends(embedding, head, new_num_tokens)
        self.config.base["grown_vocab_size"] = new_num_tokens
        set_vocab_size(self.base, new_num_tokens)
        return self.get_input_embeddings()

    def unload(self) -> PreTrainedModel:
        """Give the base back as it was before `expand`; this model must not be used afterwards."""
        remove_adapters(self)
        remove(self.base, self._installed)
        if self.config.base.get("vocab_size") is not None:
            set_vocab_size(self.base, self.config.base["vocab_size"])
        return self.base

    # ------------------------------------------------------------------------------------------
    # saving

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Only where this class runs as remote code: from the package, `save_pretrained` writes it.

        Tools that register whatever they have loaded would copy this one file, which is no whole.
        """
        if not cls.__module__.startswith("controlllm."):
            super().register_for_auto_class(auto_class)

    def save_sidecar(
        self, folder: str | os.PathLike[str], overwrite: bool = False, bits: int | None = None
    ) -> None:
        """Write the trained tensors only; see `controlllm.expansion.files.sidecar.save_sidecar`.

        Raises:
            ModelError: this class runs as remote code, and the package is not installed.
            CheckpointError: the folder holds anything else, or cannot be written.
        """
        try:
            from controlllm.expansion.files.sidecar import save_sidecar
        except ImportError as error:  # this class also runs as remote code, without the package
            raise ModelError(
                "Saving a sidecar needs the package controlllm, from a checkout or a wheel."
            ) from error
        save_sidecar(self, folder, overwrite, bits=bits)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Write the whole model, its card, and the code for processes without this package.

        Raises:
            ModelError: the base or the copies are quantised.
        """
        if next(quantised_layers(self), None) is not None:
            raise ModelError(
                "this model is quantised and cannot be saved: save the sidecar of a model whose "
                "copies are not, and load it onto the base as it was."
            )
        self.config.auto_map = self.auto_map
        super().save_pretrained(save_directory, *args, **kwargs)
        try:
            from controlllm.expansion.hub.full import complete_folder
        except ImportError:  # as remote code: transformers has copied that code itself
            return
        complete_folder(self.config, save_directory)


def _begin_forward(
    model: ControlLLMForCausalLM, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Let the blocks know the inputs, whichever `forward` runs (foreign loops replace it)."""
    named = {"input_ids": args[0]} if args else {}
    check_cache(kwargs.get("past_key_values"), model._installed.slots())
    model._state.begin({**named, **kwargs})


def _end_forward(model: ControlLLMForCausalLM, args: Any, output: Any) -> None:
    if output is None:
        spoil_cache((model._state.inputs or {}).get("past_key_values"))
    note_cache(getattr(output, "past_key_values", None), model._installed.slots())
    model._state.inputs = None


def _build_base(config: ControlLLMConfig) -> PreTrainedModel:
    """The base's architecture without weights."""
    base_config = config.base_config()
    return AutoModelForCausalLM.from_config(
        base_config, attn_implementation=base_config._attn_implementation
    )
