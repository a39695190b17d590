"""Will it fit, before anything runs.

activation_bytes  Bytes that a forward pass keeps for backward, counted on the meta device
estimate          What a run will take, before anything runs: from its model's config, on the meta
                  device
worst_case        The largest batch first: a run that is to go out of memory does so in its first
                  minute
"""
