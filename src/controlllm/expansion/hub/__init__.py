"""The Hugging Face model and its folders.

card       The model card (README.md) beside every saved form
decoder    The blocks of a decoder, whether it is expanded or not
expand     `expand`: a base model in, an expanded model out, with exactly the same outputs
full       The full form: what `save_pretrained` writes beside the weights, for any process to load
hf_config  The expanded model's config, as `transformers` knows it
modeling   The expanded model: one `PreTrainedModel` that holds any decoder-only base
outputs    Hidden states and attentions of an expanded model: one per position, not one per branch
"""
