"""Floor 1: rows of any source -> batches of tokens.

```
step  room      function or class     input -> output
----  --------  --------------------  -------------------------------------------------------------
 1    sources   open_chunks           SourceConfig -> numbered chunks of rows, opened when needed
 2    examples  keeps_row             row -> whether it takes part (split, filter, sample)
 3    formats   to_document           row -> a text, or a list of messages
 4    examples  Renderer              documents -> token ids, and which are targets
 5    examples  RowEncoder            2-4 and `max_length` -> examples, every row counted
 6    loader    Stream                chunks, shuffled and endless -> examples, as one lane draws
 7    loader    Mixer                 several streams with shares -> one sequence of draws
 8    loader    Batcher               draws -> items: a packed slot, or rows to be padded
 9    loader    collate               items -> a dict of tensors
10    loader    TrainLoader           1-9 in lanes, on all ranks and workers -> batches
 -    cache     prepare_source        1-5 over a whole source -> tokens on disk
 -    loader    eval_batches          a held-out source -> fixed batches, each target once
 -    loader    read_questions        a held-out source -> prompts to answer, and their answers
```

config    What the data section may say, and the names by which users' own code joins
sources   Any path becomes numbered chunks of rows; nothing is read before it is asked for
formats   A row becomes a text or a list of messages
examples  A document becomes token ids and labels
cache     A whole source tokenised once, under a key of all that it depends on
loader    Which example comes next, on which rank, and the state to resume it
inspect   The same parts on a sample, to be looked at

```
lane 0:  source a -> stream --.
         source b -> stream ---+-> mixer -> batcher -> item 0, 2, 4, ...   --.
lane 1:  source a -> stream --.                                               +-> batches
         source b -> stream ---+-> mixer -> batcher -> item 1, 3, 5, ...   --'
```

Why it is built so: docs/decisions/0003. Training: `for batch in TrainLoader(config, tokenizer, 8,
seed=0): model(**model_inputs(batch))`. Sources, readers, formats, filters, hooks, collators and
templates join by name (docs/extending).
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.data.cache.store import TokenStore
    from controlllm.data.config.data_config import DataConfig, StageConfig
    from controlllm.data.config.hooks import (
        PostprocessContext,
        register_collator,
        register_postprocess,
    )
    from controlllm.data.config.source_config import SourceConfig
    from controlllm.data.examples.encode import Example, SourceStats
    from controlllm.data.examples.row_filters import register_filter
    from controlllm.data.examples.templates import resolve_chat_template
    from controlllm.data.formats import Document, Message, Row, register_format
    from controlllm.data.inspect.overlap import warn_of_overlaps
    from controlllm.data.loader.collate import (
        PADDING,
        REHEARSAL,
        REPLAY,
        TRAIN,
        Batch,
        Member,
        collate,
        model_inputs,
        padded_width,
    )
    from controlllm.data.loader.evaluation import eval_batches, read_examples
    from controlllm.data.loader.open_source import Size, check_first_rows
    from controlllm.data.loader.questions import (
        Question,
        QuestionSet,
        check_questions,
        read_questions,
    )
    from controlllm.data.loader.train_loader import TrainLoader
    from controlllm.data.sources import register_reader, register_source

__all__ = [
    "PADDING",
    "REHEARSAL",
    "REPLAY",
    "TRAIN",
    "Batch",
    "DataConfig",
    "Document",
    "Example",
    "Member",
    "Message",
    "PostprocessContext",
    "Question",
    "QuestionSet",
    "Row",
    "Size",
    "SourceConfig",
    "SourceStats",
    "StageConfig",
    "TokenStore",
    "TrainLoader",
    "check_first_rows",
    "check_questions",
    "collate",
    "eval_batches",
    "model_inputs",
    "padded_width",
    "read_examples",
    "read_questions",
    "register_collator",
    "register_filter",
    "register_format",
    "register_postprocess",
    "register_reader",
    "register_source",
    "resolve_chat_template",
    "warn_of_overlaps",
]

__getattr__, __dir__ = lazy_names(__name__)
