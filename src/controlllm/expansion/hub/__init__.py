"""The Hugging Face model and its folders.

backbone         The expanded model without its head: what `AutoModel` gives
branches         A new sidecar beside earlier ones: it trains, they are frozen at their dials
expand           `expand`: a base model in, an expanded model out, with exactly the same outputs
full             The full form: what `save_pretrained` writes beside the weights, for any process
                 to load
modeling         The expanded model: one `PreTrainedModel` that holds any decoder-only base
named            Sidecars by name on one base: what is common to using them and to training one of
                 them
outputs          Hidden states and attentions of an expanded model: one per position, not one per
                 branch
peft             Adapters by PEFT: LoRA, DoRA or OFT on a base, or on the frozen blocks of an
                 expanded model
several          Several named sidecars onto one base, from their folders
sidecar_loading  A sidecar onto its base: the base is expanded, and gets the sidecar's tensors
sidecars         The model with several named sidecars on one base, whose weights are held once
"""
