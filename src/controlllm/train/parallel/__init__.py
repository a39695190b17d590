"""Several processes, one run: who they are, how they share the model, what they agree on.

```
environment --> processes (`launched`) --> mesh (`plan_mesh`) --> sharded model (`shard_model`)
torchrun, srun   rank of world_size         replicate x shard      fully_shard of every part
```
One way to shard serves all strategies: FSDP2 on a mesh (copies x parts). `fsdp` is one copy in
parts, `ddp` copies of one part each, `hsdp` both. Every frozen block, expanded block and
interpolator is a unit of its own, so gradients and optimizer state exist for trained tensors only.
"""

from controlllm.train.parallel.mesh import MeshPlan, plan_mesh
from controlllm.train.parallel.processes import Place, launched, place_in
from controlllm.train.parallel.sharding import shard_model
from controlllm.train.parallel.world import World, open_world

__all__ = [
    "MeshPlan",
    "Place",
    "World",
    "launched",
    "open_world",
    "place_in",
    "plan_mesh",
    "shard_model",
]
