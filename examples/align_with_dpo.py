"""Preferences by TRL's DPO; the reference is the base inside the expanded model, no second copy.

python examples/align_with_dpo.py [MODEL]           (needs trl; default: the demo's small base)
"""

import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from controlllm import ExpansionConfig, expand, load_sidecar
from controlllm.demo import base_model_path
from controlllm.integrations.trl import ControlLLMDPOTrainer

PAIRS = [
    {
        "prompt": f"def f{i}(x):\n",
        "chosen": f'    """Add {i}."""\n    return x + {i}\n',
        "rejected": f"    return x + {i}\n",
    }
    for i in range(32)
]


def load(name: str):
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)


def main(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = expand(load(name), ExpansionConfig())
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            beta=0.1,
            max_steps=8,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=8,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
        )
        trainer = ControlLLMDPOTrainer(
            model,
            args=settings,
            train_dataset=Dataset.from_list(PAIRS),
            processing_class=tokenizer,
        )
        trainer.train()
        margins = [row["rewards/margins"] for row in trainer.state.log_history if "loss" in row]
        print(
            f"margin of the preferred answer over the base: {margins[0]:.2f} to {margins[-1]:.2f}"
        )
        print("parameters of the reference:", sum(1 for _ in trainer.ref_model.parameters()))
        again = load_sidecar(load(name), f"{folder}/checkpoint-8/sidecar")
    model, base, again = (m.eval().to(model.device) for m in (model, load(name), again))
    ids = tokenizer(PAIRS[0]["prompt"], return_tensors="pt").input_ids.to(model.device)
    print("the sidecar gives the same model:", torch.equal(model(ids).logits, again(ids).logits))
    with model.disable_adapter():
        print("the base inside is the base:", torch.equal(model(ids).logits, base(ids).logits))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(base_model_path()))
