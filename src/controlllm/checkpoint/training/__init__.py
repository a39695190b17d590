"""The checkpoint that a run goes on from.

codec      Nested Python state to JSON and safetensors and back, without pickles
kinds      The kinds of models that are saved, and what each is saved as: one table, read from its
           top
manifest   The completion mark of a training checkpoint: what files it has, with their sizes and
           SHA-256
optimizer  The optimizer's state by the names of parameters, so that it fits however they are
           sharded
rng        The random states of a process, taken and given back
shards     Tensors that are saved in parts, by `torch.distributed.checkpoint`; read by any number
           of ranks
state      The training checkpoint: everything a run needs to go on as if it had never stopped
tensors    What of a model is trained, what model it is, and putting the trained tensors back
writer     Writing the checkpoints of a run, by one process, or by all of them while training goes
           on
"""
