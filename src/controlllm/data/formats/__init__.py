"""A row of a known shape -> a document: a text (`str`) or a conversation (messages).

base      What a format is, and how one is chosen for a row
oasst     OpenAssistant's message trees, as nested rows or as single messages that a hook joins
reading   Helpers to read the columns of a row; an odd value is an error with the column's name
standard  Formats that are recognised by their columns, then those of single data sets

The first are recognised from columns; all others are used only where a source names them
(`format: gsm8k`).
"""

# Importing a module registers its formats.
from controlllm.data.formats import oasst, standard
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
    "check_columns",
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
