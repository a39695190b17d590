"""Who makes the steps.

backends  Which loop trains
hf        `transformers.Trainer` as the loop, on the same run config
native    The native loop, in one process or in many
"""
