"""One step's loss and update.

alpha         Training for the dial: one alpha per optimizer step, drawn from a range
head          The loss without all logits at once: the LM head applied to a few positions at a time
liger         Liger's Triton kernels in norms, MLPs, rotary embeddings and the loss, for training on
              GPUs
loss_types    Types of loss: what the cross-entropy of a target is multiplied by
losses        One optimizer step's loss, the same for every back end
low_bit       AdamW that keeps its moments in 8 or 4 bits, by torchao (an optional package)
optim         AdamW with its parameter groups; the learning rate follows a schedule of `schedules`
rows          Pick the rows of one origin out of a batch, padded or packed
schedules     Learning-rate schedules: pure functions of the step
"""
