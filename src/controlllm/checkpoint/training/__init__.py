"""The checkpoint that a run goes on from.

checkpoints  The checkpoints of a run folder: which there are, the newest whole one, the best one
codec        Nested Python state to JSON and safetensors and back, without pickles
kinds        How a model of each kind is saved, and put together again
manifest     The completion mark of a training checkpoint
optimizer    The optimizer's state by the names of parameters, however they are sharded
saved        What lies in a folder: the kinds of saved models and the files by which each is known
shards       Tensors that are saved in parts, by `torch.distributed.checkpoint`
state        The training checkpoint: everything a run needs to go on as if it had never stopped
writer       Writing the checkpoints of a run: by one process, or by all while training goes on
"""
