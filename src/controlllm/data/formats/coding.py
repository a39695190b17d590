"""Data sets of programs, each chosen by its name."""

from controlllm.common.errors import DataError
from controlllm.data.formats.base import register_format
from controlllm.data.formats.reading import Document, Row, read_list, read_text, turn

__all__ = ["mbpp", "opc_annealing", "opc_sft_stage1", "opc_sft_stage2"]


@register_format("opc_sft_stage1", reads=("instruction", "output"))
def opc_sft_stage1(row: Row) -> Document:
    """`OpenCoder-LLM/opc-sft-stage1`, split `train`.

    Subsets: `filtered_infinity_instruct`, `largescale_diverse_instruct`, `realuser_instruct`.
    Columns: `instruction`, `output` (text); others are not read.
    """
    return turn(read_text(row, "instruction"), read_text(row, "output"))


@register_format("opc_sft_stage2", reads=("instruction", "output"))
def opc_sft_stage2(row: Row) -> Document:
    """`OpenCoder-LLM/opc-sft-stage2`, split `train`.

    Subsets: `educational_instruct`, `evol_instruct`, `mceval_instruct`, `package_instruct`.
    Columns: `instruction`, `output` (text); others (code and tests of some subsets) are not read.
    """
    return turn(read_text(row, "instruction"), read_text(row, "output"))


@register_format("opc_annealing", reads=("text",))
def opc_annealing(row: Row) -> Document:
    """`OpenCoder-LLM/opc-annealing-corpus`, split `train`: plain text.

    Subsets: `algorithmic_corpus`, `synthetic_code_snippet`, `synthetic_qa`. Columns: `text`; others
    (`lang` of the first subset) are not read: `where: {lang: [python]}` uses them.
    """
    return read_text(row, "text")


@register_format("mbpp", reads=("text", "code", "test_list"))
def mbpp(row: Row) -> Document:
    r"""`google-research-datasets/mbpp`, subset `full`; train on splits `train` and `prompt` only.

    Columns: `text`, `code`, `test_list` (a list of `assert` lines); `task_id`, `test_setup_code`
    and `challenge_test_list` are not read. Subset `sanitized` calls the first one `prompt`: add
    `columns: {text: prompt}`. Makes the task with its tests, as its evaluation asks, and the code;
    the file's line ends (`\r\n`, some a lone `\r`) become `\n`, and blank ends are cut.
    """
    tests = read_list(row, "test_list")
    for i, test in enumerate(tests):
        if not isinstance(test, str):
            raise DataError(f"column 'test_list', item {i} is a {type(test).__name__}, not text")
    question = "\n".join([read_text(row, "text"), "Your code should pass these tests:", "", *tests])
    return turn(_unix(question), _unix(read_text(row, "code")))


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
