"""An interpolator of your own: one small class, then its name in the config.

python examples/add_an_interpolator.py [MODEL]      (default: the demo's small base)
"""

import sys

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from controlllm import ExpansionConfig, expand
from controlllm.demo import base_model_path
from controlllm.expansion import INTERPOLATORS, Interpolator


@INTERPOLATORS.register("norm_gate")
class NormGate(Interpolator):
    """Alpha per token from how much the pretrained block changes its input: starts at 0.5."""

    def __init__(self, hidden_size: int, alpha: float = 0.5, train_alpha: bool = False) -> None:
        super().__init__(hidden_size, alpha, train_alpha)
        self.scale = nn.Parameter(torch.zeros(1))

    def gate(self, x: Tensor, pretrained: Tensor, expanded: Tensor) -> Tensor:
        change = (pretrained - x).float().norm(dim=-1, keepdim=True)
        return torch.sigmoid(self.scale.float() * change)


def main(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    ids = tokenizer("A list is a sequence of objects.", return_tensors="pt").input_ids
    before = base(ids).logits
    model = expand(base, ExpansionConfig(interpolator="norm_gate"))
    print("unchanged by expand:", torch.equal(model(ids).logits, before))
    model.train()
    for _ in range(3):  # the gate gets a gradient as soon as the branches differ
        model(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    print("alpha per layer:", model.alphas())
    print("gates:", [block.interpolator.scale.item() for block in model.blocks.values()])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(base_model_path()))
