"""Step 1: a source config -> blocks of rows, each row with the place it came from.

arrow          Arrow files, in both forms (IPC file and stream)
arrowmessages  Messages of Arrow's IPC forms, looked at before Arrow unpacks them
arrowrows      Record batches of Arrow -> rows; what Parquet, Arrow files and saved data sets share
avro           Avro: container files cut at the sync markers that stand between their blocks of
               records
avroblocks     Blocks of Avro files: unpacked no further than they may be, their records read one
               by one
blocks         A source as numbered blocks of rows: what shuffling, sharding and resuming need of
               any source
combine        Blocks made of blocks: several in a row, the first rows only, or held in memory
files          One file of a source, on this machine or elsewhere: what is known of it, and how it
               is opened
filewise       Blocks made of files: what all kinds share, and the plainest kind, where a file is a
               block
finding        Step 1a: the path of a source -> its files, in a fixed order, each with its type
hub            Data sets of the Hugging Face Hub, and those that `datasets` holds already
identity       What tells files apart: a fingerprint of their content, and a stamp of when they
               were touched
jsonlist       JSON files that hold a list of rows, or an object that holds exactly one such list
jsontext       JSON text that is parsed value by value, so that a file of any size takes the memory
               of one
lines          JSON lines: one object per line; lines of white space only are no rows
opening        Step 1: a source config -> its blocks, by whatever opener reads sources of its kind
pages          Pages of Parquet files, looked at as they are read, before Arrow unpacks them
parquet        Parquet: a row group is a block, known from the footers alone and read batch by batch
ranges         Files cut into byte ranges
registry       What can be read, by name: openers of whole sources, and readers of one file
saved          Folders that `save_to_disk` of `datasets` wrote, read as the Arrow files they are
slices         Splits and slices as `datasets` spells them: `train`, `train[:10%]`,
               `train[100:200]+test`
splits         Splits of a folder: which files are `train`, `test`, ..., told by their names as on
               the Hub
tables         CSV and TSV: a header line, then rows, read line by line
text           Plain text and Markdown: a file, a paragraph or a line is a document
trouble        Whatever goes wrong while a file is read, told with its name, what happened and what
               to do
unpacking      How much may be unpacked at once: files from anywhere hold blocks that grow a
               million times
unread         Fields of a source that its opener does not read are refused by name
weight         About how much memory a row takes
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
