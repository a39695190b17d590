"""An expanded model in TRL's SFTTrainer, whose loss replaces `forward`: the divergence arrives.

python examples/train_with_trl.py [MODEL]           (needs trl; default: the demo's small base)
"""

import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from controlllm import ExpansionConfig, expand, load_sidecar
from controlllm.demo import base_model_path
from controlllm.integrations import ControlLLMCallback

ROWS = [{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(32)]


def load(name: str):
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)


def main(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = expand(load(name), ExpansionConfig())
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=f"{folder}/run",
            max_steps=8,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            logging_steps=4,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
        )
        SFTTrainer(
            model,
            args=settings,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            callbacks=[ControlLLMCallback()],  # tells the model of gradient accumulation
        ).train()
        print("divergence per layer in the last step:", model.divergence)
        model.save_sidecar(f"{folder}/sidecar")
        again = load_sidecar(load(name), f"{folder}/sidecar")
    ids = tokenizer(ROWS[0]["text"], return_tensors="pt").input_ids
    same = torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
    print("the sidecar gives the same model:", same)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(base_model_path()))
