"""Step 2: a row of a known shape -> a document: a text (`str`) or a conversation (messages).

```
module     formats
---------  -------------------------------------------------------------------------------------
base       the registry, recognition by columns
reading    helpers to read columns;  roles: who may speak
standard   messages, sharegpt, alpaca, prompt_completion, preference, text (recognised)
maths      openmathinstruct_2, gsm8k, ultrainteract
coding     opc_sft_stage1, opc_sft_stage2, opc_annealing, mbpp
chinese    alpaca_zh, alpaca_gpt4_zh, ruozhiba, stem_zh, llama_3_syne
chats      ultrachat_200k, ultrafeedback, openorca, openhermes_2_5, magpie, samsum, redpajama
oasst      oasst, and the postprocess hooks oasst_threads, oasst_best_threads
```

All but the standard ones are used only where a source names them (`format: gsm8k`).
"""

# Importing a module registers its formats.
from controlllm.data.formats import chats, chinese, coding, maths, oasst, standard
from controlllm.data.formats.base import (
    FORMATS,
    Format,
    check_columns,
    register_format,
    to_document,
)
from controlllm.data.formats.reading import (
    Document,
    Message,
    Row,
    read_list,
    read_messages,
    read_text,
    read_turns,
    turn,
)

__all__ = [
    "FORMATS",
    "Document",
    "Format",
    "Message",
    "Row",
    "chats",
    "check_columns",
    "chinese",
    "coding",
    "maths",
    "oasst",
    "read_list",
    "read_messages",
    "read_text",
    "read_turns",
    "register_format",
    "standard",
    "to_document",
    "turn",
]
