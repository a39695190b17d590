"""The checkpoint that a run goes on from.

codec      Nested Python state to JSON and safetensors and back, without pickles
kinds      The kinds of models that are saved, and what each is saved as
manifest   The completion mark of a training checkpoint
optimizer  The optimizer's state by the names of parameters, however they are sharded
shards     Tensors that are saved in parts, by `torch.distributed.checkpoint`
state      The training checkpoint: everything a run needs to go on as if it had never stopped
writer     Writing the checkpoints of a run: by one process, or by all while training goes on
"""
