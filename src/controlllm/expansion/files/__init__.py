"""Sidecars and adapters: what trained, saved apart from its base.

adapter_config  Which adapters are put where: one dataclass, checked when it is made
adapter_file    What the config of a PEFT adapter may say to be loaded here: `adapter_config.json`
peft            Adapters by PEFT: LoRA, DoRA or OFT on a base, or on the frozen blocks of an
                expanded model
sidecar         The sidecar: all trained tensors of an expanded model, saved apart from its base
"""
