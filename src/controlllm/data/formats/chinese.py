"""Chinese instructions, and the bilingual corpus of Llama-3-SynE, each chosen by its name."""

from controlllm.data.formats.base import register_format
from controlllm.data.formats.reading import Document, Row, read_text
from controlllm.data.formats.standard import ALPACA_COLUMNS, alpaca

__all__ = ["alpaca_gpt4_zh", "alpaca_zh", "llama_3_syne", "ruozhiba", "stem_zh"]


@register_format("alpaca_zh", reads=ALPACA_COLUMNS)
def alpaca_zh(row: Row) -> Document:
    """`shibing624/alpaca-zh`, split `train`; `llamafactory/alpaca_zh` is of the same shape.

    Columns: `instruction`, `input` (often empty), `output` (all text).
    """
    return alpaca(row)


@register_format("alpaca_gpt4_zh", reads=ALPACA_COLUMNS)
def alpaca_gpt4_zh(row: Row) -> Document:
    """`llm-wizard/alpaca-gpt4-data-zh`, split `train`; also `llamafactory/alpaca_gpt4_zh`.

    Columns: `instruction`, `input` (often empty), `output` (all text).
    """
    return alpaca(row)


@register_format("ruozhiba", reads=ALPACA_COLUMNS)
def ruozhiba(row: Row) -> Document:
    """`hfl/ruozhiba_gpt4`, split `train`: 2,449 trick questions, answered twice.

    Columns: `instruction`, `input` (often empty), `output` (all text). Its two files hold the
    answers of two models to the same questions; give the path of one to have each question once.
    """
    return alpaca(row)


@register_format("stem_zh", reads=ALPACA_COLUMNS)
def stem_zh(row: Row) -> Document:
    """`hfl/stem_zh_instruction`, split `train`: natural sciences and medicine.

    Columns: `instruction`, `input` (often empty), `output` (all text).
    """
    return alpaca(row)


@register_format("llama_3_syne", reads=("text",))
def llama_3_syne(row: Row) -> Document:
    """`survivi/Llama-3-SynE-Dataset`: plain text, one split for each kind and language.

    Splits `book_cn`, `encyclopedia_cn`, `qa_forum_cn`, `web_cn`, `code_en`, `math_en`,
    `synthesis_en` and others. Columns: `text`; others are not read.
    """
    return read_text(row, "text")
