"""What both branches of every expanded part compute, kept while somebody looks.

    with model.probe() as p:
        model(input_ids=ids)
    p.pretrained[3], p.expanded[3], p.merged[3]  # (B, T, D), the block's two outputs and their join
    p.alpha[3]                                   # (B, T), the weight of the copy

Forward hooks do it, so that a model that nobody looks into is as quick as ever. Keys are layers;
"embedding" and "norm" are the expanded ends, and "head" has an alpha only (its weights are joined,
not its outputs).

Shapes: B batch, T tokens, D hidden width.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from controlllm.common.errors import ConfigError, ModelError
from controlllm.expansion.method.block import ExpandedBlock, StackBlock
from controlllm.expansion.method.dials import dial_at, turned
from controlllm.expansion.method.ends import ExpandedEnd
from controlllm.expansion.surgery.install import Expansion

__all__ = ["Probe", "ProbePass", "Probed"]

Part = int | str
"""A layer, or the kind of an expanded end."""


class _Seen(dict[Part, Tensor]):
    """What was seen of each part; what was not is an error that says why."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __missing__(self, part: Part) -> Tensor:
        seen = ", ".join(map(str, self)) or "none"
        raise ModelError(
            f"{self.what}[{part!r}] was not seen in this forward pass (seen: {seen}). Either it is "
            "no part that is looked at (layers=...), or that branch did not run: no copy does "
            "where the expansion is off, and at alpha 0 or 1 one branch suffices; in a pass that "
            "is given a KV cache, as in generate, the other one is not computed for the record."
        )


@dataclass
class ProbePass:
    """One forward pass of the decoder.

    Attributes:
        pretrained: outputs of the frozen branches (B, T, D).
        expanded: outputs of the copies (B, T, D).
        merged: what the parts gave on (B, T, D).
        alpha: weights of the copies (B, T), float32.
    """

    pretrained: dict[Part, Tensor] = field(default_factory=partial(_Seen, "pretrained"))
    expanded: dict[Part, Tensor] = field(default_factory=partial(_Seen, "expanded"))
    merged: dict[Part, Tensor] = field(default_factory=partial(_Seen, "merged"))
    alpha: dict[Part, Tensor] = field(default_factory=partial(_Seen, "alpha"))


class Probe:
    """The forward passes that were seen; of the last one the parts are attributes here, too.

    Attributes:
        passes: the last `max_passes` of them, oldest first.
        count: how many there were in all.
    """

    def __init__(self, max_passes: int | None) -> None:
        self.passes: deque[ProbePass] = deque(maxlen=max_passes)
        self.count = 0

    @property
    def last(self) -> ProbePass:
        """The newest pass (ModelError: there was none)."""
        if not self.passes:
            raise ModelError("nothing was seen yet: run the model inside `with model.probe()`.")
        return self.passes[-1]

    @property
    def pretrained(self) -> dict[Part, Tensor]:
        """Outputs of the frozen branches (B, T, D) in the last pass."""
        return self.last.pretrained

    @property
    def expanded(self) -> dict[Part, Tensor]:
        """Outputs of the copies (B, T, D) in the last pass."""
        return self.last.expanded

    @property
    def merged(self) -> dict[Part, Tensor]:
        """What the parts gave on (B, T, D) in the last pass."""
        return self.last.merged

    @property
    def alpha(self) -> dict[Part, Tensor]:
        """Weights of the copies (B, T) in the last pass."""
        return self.last.alpha


class Probed:
    """What an expanded model offers to those who look inside; mixed into the model's class."""

    _expansion: Expansion
    _installed: Any

    @contextmanager
    def probe(
        self,
        layers: Sequence[int] | None = None,
        *,
        max_passes: int | None = 1,
        keep_grad: bool = False,
        device: str | torch.device | None = None,
    ) -> Iterator[Probe]:
        """Look at every forward pass of this thread inside, those of `generate` too.

        A branch that a pass can do without (the copy at alpha 0) is computed for the record, unless
        the pass reads on in a KV cache (as in `generate`), where that branch did not write.

        Args:
            layers: which blocks are looked at; None = all, and the expanded ends.
            max_passes: how many passes are kept, the last ones: what bounds the memory of long
                texts. None = all.
            keep_grad: keep the graph of the tensors, to differentiate through what was seen.
            device: where what was seen is kept; None = where it is.

        Raises:
            ConfigError: a layer is not expanded, or `max_passes` is no number of passes.
        """
        expansion = self._looked_into()
        blocks = expansion.blocks
        if unknown := sorted({*(layers or ())} - blocks.keys()):
            raise ConfigError(f"layers={unknown} are not expanded; expanded are {sorted(blocks)}.")
        if max_passes is not None and max_passes < 1:
            raise ConfigError(f"max_passes={max_passes}; allowed: a whole number from 1, or None.")
        recorder = _Recorder(Probe(max_passes), keep_grad, device)
        try:
            recorder.watch_passes(self.get_decoder())  # type: ignore[attr-defined]
            stands = self._installed  # Where others stand there, too, what they give together.
            for layer, block in blocks.items():
                if layers is None or layer in layers:
                    recorder.watch_block(layer, block, stands.blocks[layer])
            for kind, end in expansion.ends.items() if layers is None else ():
                recorder.watch_end(kind, end, stands.ends[kind])
            yield recorder.probe
        finally:
            recorder.close()

    def _looked_into(self) -> Expansion:
        """Whose parts are looked at."""
        return self._expansion


class _Recorder:
    """The hooks of one probe."""

    def __init__(self, probe: Probe, keep_grad: bool, device: Any) -> None:
        self.probe, self.keep_grad, self.device = probe, keep_grad, device
        self._thread = threading.get_ident()
        self._hooks: list[Any] = []
        self._inside = False
        self._own_cache = True

    @property
    def _looks(self) -> bool:
        """Whether what runs now is a pass of the thread that looks."""
        return threading.get_ident() == self._thread

    def close(self) -> None:
        """Take all hooks away."""
        for hook in self._hooks:
            hook.remove()

    def watch_passes(self, decoder: nn.Module) -> None:
        """Let a pass begin and end with the decoder's; the head follows it and still belongs."""

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._looks:
                self._own_cache = not any(map(_is_cache, (*args, *kwargs.values())))
                self.probe.passes.append(ProbePass())
                self.probe.count += 1
                self._inside = True

        def end(module: nn.Module, args: Any, output: Any) -> None:
            if self._looks:  # What backward computes again is no pass.
                self._inside = False

        self._hooks.append(decoder.register_forward_pre_hook(begin, with_kwargs=True))
        self._hooks.append(decoder.register_forward_hook(end, always_call=True))

    def watch_block(self, layer: int, block: ExpandedBlock, place: nn.Module) -> None:
        """Keep the branches of a block, its alpha and the output of its place in the decoder."""
        self._watch_branches(layer, block)

        def complete(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._looks and self._inside:
                now = self.probe.last
                merged = _hidden(output)
                self._add_missing(layer, block, args, kwargs)
                now.merged[layer] = self._kept(merged)
                if layer not in now.alpha:
                    now.alpha[layer] = self._kept(_alpha_of(block, merged))

        self._hooks.append(place.register_forward_hook(complete, with_kwargs=True))

    def watch_end(self, kind: str, end: ExpandedEnd, place: nn.Module) -> None:
        """Keep the branches of an end, where it joins outputs, and its alpha."""
        self._watch_branches(kind, end)

        def complete(module: nn.Module, args: Any, output: Any) -> None:
            if self._looks and self._inside:
                now = self.probe.last
                if end.state.enabled and kind not in now.expanded:
                    with nullcontext() if self.keep_grad else torch.no_grad():
                        end.expanded(*args)
                now.merged[kind] = self._kept(output)
                if end.is_base or kind not in now.alpha:
                    now.alpha[kind] = self._kept(output.new_zeros(output.shape[:2]).float())

        self._hooks.append(place.register_forward_hook(complete))

    def _watch_branches(self, part: Part, module: ExpandedBlock | ExpandedEnd) -> None:
        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(branch: nn.Module, args: Any, output: Any) -> None:
                if self._looks and self._inside:
                    getattr(self.probe.last, name)[part] = self._kept(_hidden(output))

            return hook

        def keep_alpha(interpolator: nn.Module, args: Any, output: Any) -> None:
            if not self._looks or not self.probe.passes:
                return
            if self._inside:
                like = args[1][..., 0]
                alpha_BT = output[1].float().flatten(1) if output[1].dim() > 1 else output[1]
                self.probe.last.alpha[part] = self._kept(alpha_BT.expand(like.shape))
            elif part == "head":  # It runs when the decoder is done, on weights.
                self.probe.last.alpha[part] = self._kept(output[1].float())

        branches = ("pretrained", "expanded")
        self._hooks += [getattr(module, b).register_forward_hook(keep(b)) for b in branches]
        if (interpolator := getattr(module, "interpolator", None)) is not None:
            self._hooks.append(interpolator.register_forward_hook(keep_alpha))

    def _add_missing(self, layer: int, block: ExpandedBlock, args: Any, kwargs: Any) -> None:
        """Run the branch that the block did without, where that leaves no trace in a cache."""
        now = self.probe.last
        if not block.state.enabled or not self._own_cache:
            return
        named = {k: None if _is_cache(value) else value for k, value in kwargs.items()}
        rest = [None if _is_cache(value) else value for value in args[1:]]
        x: Any = args[0] if args else named.pop("hidden_states")
        with nullcontext() if self.keep_grad else torch.no_grad():
            if layer not in now.pretrained:
                block.pretrained(x, *rest, **named)
            if layer not in now.expanded:
                follows = isinstance(block, StackBlock)
                x = now.pretrained[layer].to(x.device) if follows else x
                block.expanded(x, *rest, **named)

    def _kept(self, tensor: Tensor) -> Tensor:
        kept = tensor if self.keep_grad else tensor.detach()
        return kept if self.device is None else kept.to(self.device)


def _is_cache(value: object) -> bool:
    return hasattr(value, "get_seq_length")


def _hidden(output: Any) -> Tensor:
    """The hidden state of a block's output, which some architectures return in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _alpha_of(block: ExpandedBlock, merged_BTD: Tensor) -> Tensor:
    """Alpha per token (B, T) of a block whose interpolator did not run."""
    like = merged_BTD[..., 0].float()
    if block.is_base:
        return torch.zeros_like(like)
    dial = dial_at(block.dial, merged_BTD)
    if isinstance(dial, Tensor):
        trained = torch.ones_like(like)[..., None]
        return turned(trained, dial, replaces=True).squeeze(-1).float()
    alpha = block.alpha()
    return torch.full_like(like, torch.nan if alpha is None else alpha)
