"""What is written beside weights: sidecars, the identity of a base, the card.

adapter_config  Which adapters are put where: one dataclass, checked when it is made
adapter_file    What the config of a PEFT adapter may say to be loaded here: `adapter_config.json`
base_files      The safetensors files that a model was loaded from, read one tensor at a time
base_record     Which base a model trains on, noted while that base is still itself
card            The model card (README.md) beside every saved form
few_bits        Rows of numbers in 1, 2 or 4 bits each, with one scale a row
fingerprint     Which base was it? A fingerprint of a model's frozen weights
lineage         The stages that a model was trained after: what is recorded of them, and whether
                one is it
packed          A sidecar's matrices in few bits: their differences from what they began as
places          Where the stages before a sidecar may lie: a look at the disk that needs no torch
records         What our JSON files and those of transformers may say: the schemas, with bounds
sidecar         The sidecar: all trained tensors of an expanded model, saved apart from its base
"""
