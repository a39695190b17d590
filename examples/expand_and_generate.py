"""Expand a model, see that nothing changed, train it for a few steps in a bare loop, turn the dial.

python examples/expand_and_generate.py [MODEL]      (default: the demo's small base)
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from controlllm import ExpansionConfig, expand
from controlllm.demo import base_model_path

TEXT = "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n"


def main(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    before = base(ids).logits

    model = expand(base, ExpansionConfig(divergence="nmse", divergence_weight=0.3))
    print("unchanged by expand:", torch.equal(model(ids).logits, before))

    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    for step in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}, divergence {model.divergence}")

    model.eval()
    prompt = tokenizer("def add(", return_tensors="pt").input_ids
    for alpha in (0.0, 0.25, 0.5):
        model.set_alpha(alpha)
        out = model.generate(prompt, max_new_tokens=24, do_sample=False)
        print(f"alpha {alpha}: {tokenizer.decode(out[0], skip_special_tokens=True)!r}")
    model.set_alpha(0.0)
    print("alpha 0 is the base:", torch.equal(model(ids).logits, before))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(base_model_path()))
