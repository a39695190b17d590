"""TRL and `datasets`: packed by TRL, read shuffled from Arrow by torch's `DataLoader`."""

from collections.abc import Iterator

import datasets
import torch
import trl
from reading import arguments, documents, endless, measure, training_batch
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


def rows(options: object) -> Iterator[dict]:
    for ids in documents(options):
        yield {"input_ids": ids}


def packed(options: object, strategy: str) -> datasets.Dataset:
    out = options.work / f"trl-{strategy}-{options.length}"
    if not out.exists():
        features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
        whole = datasets.Dataset.from_generator(
            rows,
            features=features,
            gen_kwargs={"options": options},
            cache_dir=str(options.work / "hf-cache"),
        )
        pack_dataset(whole, options.length, strategy).save_to_disk(str(out))
    return datasets.load_from_disk(str(out))


def main() -> None:
    options = arguments()
    wrapped = packed(options, "wrapped").select_columns(["input_ids"]).with_format("torch")
    loader = torch.utils.data.DataLoader(
        wrapped, batch_size=options.batch, shuffle=True, drop_last=True, collate_fn=stack
    )
    version = f"{trl.__version__}, datasets {datasets.__version__}"
    measure("TRL wrapped, datasets", options, endless(loader), version=version)
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    loader = torch.utils.data.DataLoader(
        packed(options, "bfd"), batch_size=options.batch, shuffle=True, collate_fn=collator
    )
    measure("TRL bfd, its collator", options, endless(loader), version=version)


def stack(rows: list[dict]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    return training_batch(
        torch.stack(
            [
                torch.nn.functional.pad(row["input_ids"], (0, length - len(row["input_ids"])))
                for row in rows
            ]
        )
    )


if __name__ == "__main__":
    main()
