"""Step 2: a row of a known shape -> a document: a text (`str`) or a conversation (messages).

base      What a format is, and how one is chosen for a row
chats     General chat, instruction and summary data sets, and web text, each chosen by its name
chinese   Chinese instructions, and the bilingual corpus of Llama-3-SynE, each chosen by its name
coding    Data sets of programs, each chosen by its name
maths     Data sets of mathematics and reasoning, each chosen by its name
oasst     OpenAssistant's message trees, as nested rows or as single messages that a hook joins
reading   Helpers to read the columns of a row; whatever is odd is refused with the column's name
roles     Who speaks in a conversation: the roles that are known, and what others call them
standard  Formats that are recognised by their columns: shapes that many data sets share

The standard formats are recognised from columns; all others are used only where a source names them
(`format: gsm8k`).
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
