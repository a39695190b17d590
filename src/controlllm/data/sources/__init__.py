"""A source config -> chunks of rows, each row with the place it came from.

arrow          Arrow files, in both forms, and folders that `save_to_disk` wrote of them
arrowmessages  Messages of Arrow's IPC forms, looked at before Arrow unpacks them
arrowrows      Record batches of Arrow -> rows; what Parquet, Arrow files and saved data sets share
avro           Avro container files, cut at the sync markers between their blocks of records
chunks         A source as numbered chunks of rows, which can be shuffled, dealt out and resumed
files          One file of a source, on this machine or elsewhere: what is known of it
finding        The path of a source -> its files, in a fixed order, each with its type
hub            Data sets of the Hugging Face Hub, and those that `datasets` holds already
jsonlist       JSON files that hold a list of rows, or an object that holds exactly one such list
limits         How much memory a row takes, and how much may be unpacked at once
lines          JSON lines: one object per line; lines of white space only are no rows
opening        A source config -> its chunks, by whatever opener reads sources of its kind
pages          Pages of Parquet files, looked at as they are read, before Arrow unpacks them
parquet        Parquet: a row group is a chunk, known from the footers alone and read batch by batch
ranges         Files cut into byte ranges. A row belongs to the range in which its first byte lies
registry       What can be read, by name: openers of whole sources, and readers of one file
splits         Splits of a folder, told by the names of its files as on the Hub
text           Texts (a file, a paragraph or a line is a document), and tables
"""

from controlllm.data.sources import avro, lines, parquet, text
from controlllm.data.sources.chunks import Chunks, Located, MemoryChunks, RowChunks
from controlllm.data.sources.files import SourceFile
from controlllm.data.sources.hub import dataset_chunks
from controlllm.data.sources.jsonlist import read_json
from controlllm.data.sources.opening import open_chunks
from controlllm.data.sources.registry import (
    FILE_CHUNKS,
    READERS,
    SOURCES,
    register_chunks,
    register_reader,
    register_source,
)

__all__ = [
    "FILE_CHUNKS",
    "READERS",
    "SOURCES",
    "Chunks",
    "Located",
    "MemoryChunks",
    "RowChunks",
    "SourceFile",
    "avro",
    "dataset_chunks",
    "lines",
    "open_chunks",
    "parquet",
    "read_json",
    "register_chunks",
    "register_reader",
    "register_source",
    "text",
]
