"""The dial per request: an alpha for each row, and two named sidecars on one base.

python examples/dial.py [MODEL]      (default: the demo's small base)
"""

import sys
import tempfile

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from controlllm import expand, load_sidecars
from controlllm.demo import base_model_path


def train_sidecar(base: PreTrainedModel, ids: Tensor, layers: list[int], folder: str) -> None:
    """A few large steps on one line, saved as a sidecar."""
    model = expand(base, layers=layers).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.003)
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_sidecar(folder)
    model.unload()


@torch.no_grad()
def main(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    lines = ["Two and two is four.", "A list is a sequence of objects."]
    texts = [tokenizer(line, return_tensors="pt").input_ids for line in lines]
    folders = {"maths": tempfile.mkdtemp(), "code": tempfile.mkdtemp()}
    with torch.enable_grad():
        for ids, layers, folder in zip(texts, ([0, 1], [1, 2]), folders.values(), strict=True):
            train_sidecar(base, ids, layers, folder)
    model = load_sidecars(base, folders)
    rows = texts[0].expand(3, -1)
    all_off = model(rows).logits
    model.set_alpha(
        {"maths": torch.tensor([0.0, 0.5, 0.0]), "code": torch.tensor([0.0, 0.0, float("nan")])}
    )
    by_row = model(rows).logits
    for row, what in enumerate(("the base", "maths at 0.5", "code as trained")):
        change = (by_row[row] - all_off[row]).abs().max().item()
        print(f"row {row}, {what}: logits differ from the base's by up to {change:.3g}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(base_model_path()))
