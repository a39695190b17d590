"""Floor 1: rows of any source -> batches of tokens.

```
step  module     class / function              input                     output
----  ---------  ----------------------------  ------------------------  ----------------------------------
 1    sources    read_rows                     SourceConfig              rows {column: value}, each with its place
 2    formats    to_document                   row                       a text, or a list of messages
 3    render     Renderer                      documents                 token ids + which are targets
 4    tokenized  tokenize_source               1-3 over a whole source   TokenizedSource: [i] -> Example
 5    mixing     Mixer                         sources with shares       endless draws (source, example)
 6    packing    choose_for_slot, fill_slots   lengths of waiting rows   which rows share a slot
 7    batches    padded_batch, packed_batch    examples                  a dict of tensors
 8    loader     TrainLoader, eval_batches     4-7 together              batches; a small state to resume from
```

Training: `for batch in TrainLoader(config, tokenizer, batch_size, seed): model(**model_inputs(batch))`.
Steps 2 (`register_format`), the readers of 1 (`READERS.register`) and the templates of 3 (`TEMPLATES.register`) are
open to new names.
"""

from controlllm.data.batches import PADDING, REHEARSAL, REPLAY, TRAIN, Batch, model_inputs
from controlllm.data.config import DataConfig, SourceConfig
from controlllm.data.formats import Document, Message, Row, register_format
from controlllm.data.loader import TrainLoader, eval_batches
from controlllm.data.templates import resolve_chat_template
from controlllm.data.tokenized import Example, SourceStats, TokenizedSource, tokenize_source

__all__ = [
    "PADDING",
    "REHEARSAL",
    "REPLAY",
    "TRAIN",
    "Batch",
    "DataConfig",
    "Document",
    "Example",
    "Message",
    "Row",
    "SourceConfig",
    "SourceStats",
    "TokenizedSource",
    "TrainLoader",
    "eval_batches",
    "model_inputs",
    "register_format",
    "resolve_chat_template",
    "tokenize_source",
]
