"""Floor 1: rows of any source -> batches of tokens.

```
step  module     function or class             input -> output
----  ---------  ----------------------------  --------------------------------------------------
 1    sources    read_rows                     SourceConfig -> rows {column: value} with their place
 2    formats    to_document                   row -> a text, or a list of messages
 3    render     Renderer                      documents -> token ids, and which are targets
 4    tokenized  tokenize_source               1-3 over a whole source -> source[i] = Example
 5    mixing     Mixer                         sources with shares -> endless draws
 6    packing    choose_for_slot, fill_slots   lengths of waiting rows -> which share a slot
 7    batches    padded_batch, packed_batch    examples -> a dict of tensors
 8    loader     TrainLoader, eval_batches     4-7 together -> batches, and a state to resume from
```

Training: `for batch in TrainLoader(config, tokenizer, 8, seed=0): model(**model_inputs(batch))`.
New readers (1), formats (2) and templates (3) join by name: `READERS.register`,
`register_format`, `TEMPLATES.register`.
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
