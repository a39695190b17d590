"""The expanded model: one `PreTrainedModel` that holds any decoder-only base."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from controlllm.common.errors import ConfigError, ModelError
from controlllm.common.losses import token_mask
from controlllm.expansion.alignment import DivergenceTerms
from controlllm.expansion.block import ExpandedBlock
from controlllm.expansion.config import ExpansionConfig
from controlllm.expansion.hf_config import ControlLLMConfig
from controlllm.expansion.surgery import install, remove

__all__ = ["AUTO_MAP", "ControlLLMForCausalLM"]

AUTO_MAP = {
    "AutoConfig": "modeling_controlllm.ControlLLMConfig",
    "AutoModelForCausalLM": "modeling_controlllm.ControlLLMForCausalLM",
}
"""Tells transformers where in a saved folder the code of this class is."""


class ControlLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only model whose blocks (some of them) run beside trainable copies.

    Made by `expand`, `load_sidecar` or `from_pretrained`. Everything that it does not define itself is the base's:
    `model.lm_head`, `model.model` and the like give the base's parts, so that tools find what they look for.

    Args:
        config: the expanded model's config.
        base: the model to expand, taken over and changed in place; None = built from the config, untrained.
    """

    config_class = ControlLLMConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["ConcatBlock", "StackBlock"]

    def __init__(self, config: ControlLLMConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self._holds_weights = base is not None
        self.base = base if base is not None else _build_base(config)
        self._expansion = install(self.base, config.expansion_config())
        config.text_config = self.base.config
        self._apply_dial(config.expansion_config().dial)
        vocab_size = config.base.get("grown_vocab_size")
        if vocab_size is not None:
            self.resize_token_embeddings(vocab_size)
        self.register_forward_pre_hook(_begin_forward, with_kwargs=True)
        self.register_forward_hook(_end_forward, always_call=True)
        self.post_init()

    def init_weights(self) -> None:
        """Initialise what has no weights yet; a base that was handed over keeps every one of its own."""
        if self._holds_weights:
            self.tie_weights(recompute_mapping=False)
        else:
            super().init_weights()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":  # not yet set: asking it for itself would never end
                raise
            return getattr(super().__getattr__("base"), name)

    # ------------------------------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base's forward on the expanded blocks.

        Args:
            input_ids: (B, T); or give `inputs_embeds`.
            attention_mask: (B, T), 1 for real tokens.
            labels: (B, T), unshifted, -100 = no target. When training, the loss then includes the divergence.
            output_hidden_states: give the L + 1 merged states.
            **kwargs: all that the base's forward takes.

        Returns:
            The base's output class. `loss` is the base's, plus weight * divergence when training.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
        } | kwargs
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        call = partial(self.base, **inputs)
        if labels is None or not self.training or self._state.terms is not None:
            return self._with_merged_states(call, output_hidden_states)
        with self.explicit_divergence() as terms:
            output = self._with_merged_states(call, output_hidden_states)
        mask = token_mask(inputs, self._state.divergence_tokens)
        total, count = terms.total(mask)
        penalty = total / count.clamp_min(1) * self._state.micro_batch_share()
        return _add_to_loss(output, penalty)

    def _with_merged_states(
        self, call: Callable[..., Any], wanted: bool | int | list[int] | None
    ) -> Any:
        """Run the base; where hidden states or attentions are wanted, give one per *position*, not per branch.

        transformers records both branches of every expanded block: the merged stream is what enters each position.
        """
        if not wanted:
            return self._one_attention_per_layer(call())
        states: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])

        layers = self._layers()
        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
        hooks.append(self._norm_hook(states))
        try:
            output = self._one_attention_per_layer(call())
        finally:
            for hook in hooks:
                hook.remove()
        picked = states if isinstance(wanted, bool) else _pick(states, wanted)
        output["hidden_states"] = tuple(picked)
        return output

    def _norm_hook(self, states: list[Tensor]) -> Any:
        """Keep the decoder's output, the last of the L + 1 states."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            states.append(output[0])

        return self.base.get_decoder().register_forward_hook(keep)

    def _one_attention_per_layer(self, output: Any) -> Any:
        """Keep the pretrained branch's attention map of each position (both branches are recorded, in order)."""
        maps = getattr(output, "attentions", None)
        if maps and self._state.enabled and len(maps) > len(self._layers()):
            index, kept = 0, []
            for layer in range(len(self._layers())):
                kept.append(maps[index])
                index += 2 if layer in self.blocks else 1
            output["attentions"] = tuple(kept)
        return output

    # ------------------------------------------------------------------------------------------ divergence

    @contextmanager
    def explicit_divergence(self) -> Iterator[DivergenceTerms]:
        """Collect the divergence instead of injecting its gradient: the caller adds it to its loss.

        Yields:
            The terms, filled by each forward pass inside (the last one counts).
        """
        before, self._state.terms = self._state.terms, DivergenceTerms()
        try:
            yield self._state.terms
        finally:
            self._state.terms = before

    @property
    def divergence(self) -> dict[int, float]:
        """Mean divergence per layer in the last training forward pass, detached; for logging."""
        return {layer: (s / n.clamp_min(1)).item() for layer, (s, n) in self._state.latest.items()}

    @property
    def gradient_accumulation_steps(self) -> int:
        """k, for foreign loops that divide their loss by k and do not pass `num_items_in_batch` to the model."""
        return self._state.gradient_accumulation_steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, steps: int) -> None:
        self._state.gradient_accumulation_steps = steps

    # ------------------------------------------------------------------------------------------ alpha

    @property
    def expansion(self) -> ExpansionConfig:
        """How the base was expanded (a fresh object; the dial is changed by `set_alpha`)."""
        return self.config.expansion_config()

    @property
    def blocks(self) -> dict[int, ExpandedBlock]:
        """The expanded blocks by layer."""
        return self._expansion.blocks

    def set_alpha(self, alpha: float | Mapping[int, float] | None) -> None:
        """Turn the dial: the weight of the expanded branch, from 0 (the base, bit for bit) to 1.

        Args:
            alpha: one value for all blocks and ends; or one per layer (ends and other layers keep theirs); or None,
                the trained alphas again.

        Raises:
            ConfigError: for a value outside [0, 1] or a layer that is not expanded.
        """
        dial: Any = alpha
        if isinstance(alpha, Mapping):
            before = {layer: block.dial for layer, block in self.blocks.items()}
            dial = {k: v for k, v in {**before, **alpha}.items() if v is not None}
        self.config.expansion = ExpansionConfig.from_dict(
            self.config.expansion | {"dial": dial}
        ).to_dict()
        self._apply_dial(alpha)

    def _apply_dial(self, alpha: float | Mapping[int, float] | None) -> None:
        if isinstance(alpha, Mapping):
            unknown = sorted(set(alpha) - set(self.blocks))
            if unknown:
                raise ConfigError(
                    f"alpha for layers {unknown}, but expanded are {sorted(self.blocks)}."
                )
            for layer, value in alpha.items():
                self.blocks[layer].dial = value
        else:
            for part in self._expansion.parts():
                part.dial = alpha

    def alphas(self) -> dict[int, float]:
        """Mean alpha per layer: the dial, the constant, or a token gate's mean in its last forward pass."""
        values = {layer: block.alpha() for layer, block in self.blocks.items()}
        return {layer: value for layer, value in values.items() if value is not None}

    @contextmanager
    def record_alpha(self) -> Iterator[None]:
        """Measure the mean alpha of each block over the forward passes inside, and keep it in the config.

        Collapsing a token gate needs it: `collapse` uses this mean.
        """
        self._state.alpha_sums = {}
        try:
            yield
            sums = self._state.alpha_sums
            means = {layer: (s / n.clamp_min(1)).item() for layer, (s, n) in sums.items()}
            if means:
                self.config.expansion["mean_alpha"] = means
        finally:
            self._state.alpha_sums = None

    @contextmanager
    def disable_expansion(self) -> Iterator[None]:
        """Inside, the model is the base: its function bit for bit, and its cost."""
        before, self._state.enabled = self._state.enabled, False
        try:
            yield
        finally:
            self._state.enabled = before

    # ------------------------------------------------------------------------------------------ parts

    @property
    def _state(self) -> Any:
        return self._expansion.state

    def _layers(self) -> nn.ModuleList:
        block = next(iter(self.blocks.values()))
        return next(
            m
            for m in self.base.modules()
            if isinstance(m, nn.ModuleList) and any(c is block for c in m)
        )

    def trainable_parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named trainable parameters: of expanded parts, of interpolators, and of unfrozen parts of the base."""
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

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the base does it."""
        return self.base.prepare_inputs_for_generation(*args, **kwargs)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Add tokens: their rows live in the expanded ends, the base keeps its own vocabulary.

        New rows start as the mean of the base's (as `transformers` would draw them around it).

        Raises:
            ModelError: without `expand_ends` (the frozen base would have to change), or for fewer tokens.
        """
        if new_num_tokens is None:
            return self.get_input_embeddings()
        ends = self._expansion.ends
        if not ends:
            raise ModelError(
                "Adding tokens would change the frozen base. Expand with expand_ends=True (their rows then live "
                "in the expanded ends), or resize the base before expanding it."
            )
        embedding, head = ends["embedding"].expanded, ends["head"].expanded
        if new_num_tokens < embedding.num_embeddings:
            raise ModelError(
                f"new_num_tokens={new_num_tokens} would drop tokens; there are {embedding.num_embeddings}."
            )
        tied = head.weight is embedding.weight
        embedding.weight = _grown(embedding.weight, new_num_tokens)
        embedding.num_embeddings = new_num_tokens
        head.weight = embedding.weight if tied else _grown(head.weight, new_num_tokens)
        if head.bias is not None:
            head.bias = _grown(head.bias, new_num_tokens)
        head.out_features = new_num_tokens
        self.config.base["grown_vocab_size"] = new_num_tokens
        self.config.get_text_config().vocab_size = new_num_tokens
        if hasattr(self.base, "vocab_size"):
            self.base.vocab_size = new_num_tokens
        return self.get_input_embeddings()

    def unload(self) -> PreTrainedModel:
        """Give the base back as it was before `expand`; this model must not be used afterwards."""
        remove(self.base, self._expansion)
        if "vocab_size" in self.config.base:
            self.base.config.get_text_config().vocab_size = self.config.base["vocab_size"]
        return self.base

    # ------------------------------------------------------------------------------------------ saving

    def save_sidecar(self, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the trained tensors only; see `controlllm.expansion.sidecar.save_sidecar`."""
        try:
            from controlllm.expansion.sidecar import save_sidecar
        except ImportError as error:  # this class also runs as remote code, without the package
            raise ModelError(
                "Saving a sidecar needs the package: pip install controlllm."
            ) from error
        save_sidecar(self, folder, overwrite)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Write the whole expanded model, its model card, and the code that a process without this package needs."""
        self.config.auto_map = AUTO_MAP
        super().save_pretrained(save_directory, *args, **kwargs)
        try:
            from controlllm.expansion.full import complete_folder
        except (
            ImportError
        ):  # this class runs as remote code: transformers has copied that code itself
            return
        complete_folder(self, save_directory)


def _begin_forward(
    model: ControlLLMForCausalLM, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Let the blocks know the inputs, whichever `forward` runs (foreign loops replace it)."""
    named = {"input_ids": args[0]} if args else {}
    model._state.inputs = {**named, **kwargs}


def _end_forward(model: ControlLLMForCausalLM, args: Any, output: Any) -> None:
    model._state.inputs = None


def _build_base(config: ControlLLMConfig) -> PreTrainedModel:
    """The base's architecture without weights."""
    base_config = config.base_config()
    return AutoModelForCausalLM.from_config(
        base_config, attn_implementation=base_config._attn_implementation
    )


def _grown(old: nn.Parameter, rows: int) -> nn.Parameter:
    """A parameter with more rows; new ones are the mean of the old."""
    added = (
        old.data.float()
        .mean(0, keepdim=True)
        .to(old.dtype)
        .expand(rows - old.shape[0], *old.shape[1:])
    )
    return nn.Parameter(torch.cat([old.data, added]), requires_grad=old.requires_grad)


def _pick(states: list[Tensor], wanted: int | list[int]) -> list[Tensor | None]:
    """transformers' selection of hidden states by index: the others are None."""
    indices = [wanted] if isinstance(wanted, int) else wanted
    chosen = {i % len(states) for i in indices if -len(states) <= i < len(states)}
    return [state if i in chosen else None for i, state in enumerate(states)]


def _add_to_loss(output: Any, penalty: Tensor) -> Any:
    if isinstance(output, tuple):  # return_dict=False
        return (output[0] + penalty.to(output[0].device), *output[1:])
    output["loss"] = output.loss + penalty.to(output.loss.device)
    return output
