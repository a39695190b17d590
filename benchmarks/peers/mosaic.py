"""mosaicml-streaming: MDS shards of fixed chunks, `StreamingDataset` with shuffle, local."""

import sys
import types
from importlib.machinery import ModuleSpec

from reading import arguments, chunks, endless, measure, training_batch


def without_torchvision() -> None:
    """The package imports torchvision for its picture data sets, which plain text never touches.

    No CPU build of it was at hand; these names are never called here.
    """
    for name, attribute in (
        ("torchvision", None),
        ("torchvision.datasets", "VisionDataset"),
        ("torchvision.transforms", None),
        ("torchvision.transforms.functional", "to_tensor"),
    ):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        if attribute:
            setattr(module, attribute, object)
        sys.modules[name] = module


def main() -> None:
    options = arguments()
    try:
        import torchvision  # noqa: F401
    except Exception:
        without_torchvision()
    import streaming
    import torch
    from streaming import MDSWriter, StreamingDataset

    out = options.work / f"mds-{options.length}"
    if not out.exists():
        column = {"tokens": f"ndarray:int32:{options.length}"}
        with MDSWriter(out=str(out), columns=column) as writer:
            for row in chunks(options):
                writer.write({"tokens": row})
    streaming.base.util.clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(out), shuffle=True, batch_size=options.batch)
    loader = torch.utils.data.DataLoader(dataset, batch_size=options.batch, drop_last=True)
    batches = (training_batch(batch["tokens"]) for batch in endless(loader))
    measure("mosaicml-streaming", options, batches, version=streaming.__version__)


if __name__ == "__main__":
    main()
