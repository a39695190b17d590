"""Several processes, one run: who they are, how they share the model, what they agree on.

```
environment --> processes (`launched`) --> mesh (`plan_mesh`) --> sharded model (`shard_model`)
torchrun, srun   rank of world_size         replicate x shard      fully_shard of every part
```
One way to shard serves all strategies: FSDP2 on a mesh (copies x parts). `fsdp` is one copy in
parts, `ddp` copies of one part each, `hsdp` both. Every frozen block, expanded block and
interpolator is a unit of its own, so gradients and optimizer state exist for trained tensors only.

deepspeed_config  Setting DeepSpeed up: where it runs, the config of its engine, and the parts of
                  ZeRO-3
device            The device of a run
failures          Several processes fail as one: the first to fail says so, and the others end
                  without a word
loading           Weights straight into a sharded model: no process ever holds the whole of it
mesh              Which processes hold copies, and which hold parts: pure arithmetic, and its errors
processes         Where this process stands in a run, as its launcher says it
sharding          FSDP2 over a model: which parts are units, and how they are gathered
storage           Where what trains lies in memory, so that it can be saved and put back
tensor            Tensor parallelism: the matrices of each block in parts that compute together
world             The processes of a run while it lasts: their group, their mesh, and what they
                  agree on
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy_names(__name__)
