"""Step 1: a source config -> blocks of rows, each row with the place it came from.

```
module     what
---------  ------------------------------------------------------------------------------
opening    open_blocks(source) -> Blocks
finding    path, folder or glob, here or elsewhere -> files;  files: how one is opened
registry   openers by source_type, readers by file_type, endings
blocks     what all blocks promise;  combine: several, or the first rows only
lines, jsonlist, parquet, arrow, avro, tables, text    file types
saved      folders of `save_to_disk`;  hub: data sets of the Hub, and `datasets.Dataset`
```
"""

from controlllm.data.sources import avro, lines, parquet, tables, text
from controlllm.data.sources.blocks import Blocks, Located, MemoryBlocks, RowBlocks
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.filewise import register_reader
from controlllm.data.sources.hub import dataset_blocks
from controlllm.data.sources.jsonlist import read_json
from controlllm.data.sources.opening import open_blocks
from controlllm.data.sources.registry import (
    FILE_BLOCKS,
    READERS,
    SOURCES,
    register_blocks,
    register_source,
)

__all__ = [
    "FILE_BLOCKS",
    "READERS",
    "SOURCES",
    "Blocks",
    "Located",
    "MemoryBlocks",
    "RowBlocks",
    "SourceFile",
    "avro",
    "dataset_blocks",
    "lines",
    "open_blocks",
    "parquet",
    "read_json",
    "register_blocks",
    "register_reader",
    "register_source",
    "tables",
    "text",
]
