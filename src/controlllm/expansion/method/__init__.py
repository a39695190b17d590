"""The paper: blocks, gates, mixes, divergences.

attention_maps    Attention maps of both branches of a block, for `divergence: attention`
block             The block: a frozen branch, a trained branch on the same input, and what joins
                  them
dials             What a dial makes of alpha: for all rows, row by row, token by token
divergence        Divergences: how far the trained branch has moved from its frozen twin, per token
ends              Expanded ends: trainable copies of embedding, final norm and LM head, joined by a
                  constant alpha
expansion_config  What to expand and how: one dataclass, checked when it is made
hf_config         The expanded model's config, as `transformers` knows it
injection         How the divergence reaches the gradient: by the loss where the loss holds it,
                  else injected
interpolators     Interpolators: how the pretrained and the expanded hidden state become one
plan              Where the copies go: pure functions from a config and a depth to a plan
registries        Names that an expansion's settings use, and that users' own code may add to
relaxed_norm      Norms of the expanded branch that let a part of their input through
several           Several sidecars at one place of a model, around one frozen part that is held
                  once
slots             Which branch wrote which slot of a KV cache, so that a gap is never read
state             What all expanded parts of one model share while a forward pass runs
terms             The divergences of one forward pass, block by block
unread            Said, so used: which settings of an expansion are read, depending on the others
"""
