"""What `data inspect` tells: numbers worked out by hand, samples, and surveys of whole sources."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from controlllm.common.errors import ConfigError
from controlllm.common.text.readable import readable
from controlllm.data import DataConfig, Example, SourceConfig, StageConfig
from controlllm.data.cache.prepare import prepare_source
from controlllm.data.examples.encode import RowEncoder
from controlllm.data.inspect.mix import passes, survey_mix, train_size
from controlllm.data.inspect.report import Lengths, Span, bars, mask_spans, shorten
from controlllm.data.inspect.source import (
    EXAMPLES_KEPT,
    Survey,
    SurveyOptions,
    count_rows,
    survey_source,
)
from controlllm.data.sources import open_chunks


def example(ids: list[int], targets: list[int]) -> Example:
    """Ids, and the positions that are targets."""
    labels = np.full(len(ids), -100, dtype=np.int32)
    labels[targets] = np.array(ids)[targets]
    return Example(np.array(ids, dtype=np.int32), labels)


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def look(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: int = 4096,
    samples: int = 1,
    **settings: Any,
) -> Survey:
    config = DataConfig(**{"max_length": 64, **settings})
    return survey_source(source, "train", tokenizer, config, SurveyOptions(rows, samples))


# --- lengths ---


def test_lengths_by_hand() -> None:
    lengths = Lengths.of(np.array([1, 2, 2, 3, 100]))
    assert (lengths.mean, lengths.median, lengths.p95, lengths.longest) == (21.6, 2, 100, 100)
    assert lengths.bin_width == 3  # 100 / 40, rounded up
    assert lengths.counts == [4, *[0] * 32, 1]


@given(st.lists(st.integers(1, 10_000), min_size=1))
def test_every_length_is_in_its_bar(values: list[int]) -> None:
    lengths = Lengths.of(np.array(values))
    assert sum(lengths.counts) == len(values)
    assert len(lengths.counts) <= 40
    width = lengths.bin_width
    for number, count in enumerate(lengths.counts):
        assert count == sum(number * width < value <= (number + 1) * width for value in values)
    assert sum(value <= lengths.p95 for value in values) >= 0.95 * len(values)
    assert sum(value < lengths.p95 for value in values) < 0.95 * len(values)


def test_bars_are_as_high_as_counts() -> None:
    assert bars([0, 1, 50, 51, 100]) == " ▁▄▅█"
    assert bars([0, 1, 50, 51, 100], plain=True) == " .=+@"
    assert bars([]) == ""


# --- samples ---


def test_spans_are_cut_where_the_mask_changes(pico_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = pico_tokenizer("hi you").input_ids  # <s> and six bytes
    assert mask_spans(example(ids, [3, 4, 6]), pico_tokenizer) == [
        Span("<s>hi", "context"),
        Span(" y", "target"),
        Span("o", "context"),
        Span("u", "target"),
    ]


def test_a_character_of_several_tokens_is_whole(pico_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = pico_tokenizer("a早b", add_special_tokens=False).input_ids  # 早 is three bytes
    assert mask_spans(example(ids, [2, 3, 4]), pico_tokenizer) == [
        Span("a", "context"),
        Span("早b", "target"),
    ]


def test_words_keep_their_spaces(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "checkpoints" / "stories260k-hf")
    ids = tokenizer("Once upon a time there was a girl").input_ids
    spans = mask_spans(example(ids, list(range(3, len(ids), 2))), tokenizer)
    assert "".join(text for text, _ in spans) == tokenizer.decode(ids)
    assert len(spans) > 3


@given(st.text(), st.data())
def test_spans_join_to_the_whole_text(
    pico_tokenizer: PreTrainedTokenizerBase, text: str, data: st.DataObject
) -> None:
    ids = pico_tokenizer(text).input_ids
    targets = data.draw(st.lists(st.integers(0, len(ids) - 1), unique=True))
    spans = mask_spans(example(ids, targets), pico_tokenizer)
    assert "".join(part for part, _ in spans) == pico_tokenizer.decode(ids)


def test_long_parts_and_many_parts_are_shortened_with_a_remark() -> None:
    spans = [Span("x" * 100, "target"), Span("short", "context")]
    assert shorten(spans, 40) == [
        Span("x" * 30, "target"),
        Span(" [... 60 more characters ...] ", "note"),
        Span("x" * 10, "target"),
        Span("short", "context"),
    ]
    many = shorten([Span("a", "context")] * 20, 40)
    assert many == [Span("a", "context")] * 16 + [Span("[... 4 more parts ...]", "note")]


def test_control_characters_are_shown_not_obeyed() -> None:
    assert readable("a\x1b[2J\r\x07\x7f\tb\n") == "a␛[2J␍␇␡\tb\n"
    assert readable("\x9b1m \u202eabc 早 é") == "\\x9b1m \\u202eabc 早 é"


# --- surveys ---


def test_a_small_source_is_counted_exactly(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"prompt": "hi", "completion": "you"}] * 3 + [{"prompt": "a", "completion": "b"}]
    source = SourceConfig(write_rows(tmp_path / "a.jsonl", rows), sample=1.0)
    report = look(source, pico_tokenizer).report
    encoder = RowEncoder(source, pico_tokenizer, DataConfig(max_length=64), training=True)
    encoder.encode(list(open_chunks(source).rows()))
    assert report.complete and report.error is None
    assert (report.rows, report.stats) == (4, encoder.stats)
    assert (report.examples, report.tokens) == (4, encoder.stats.tokens)
    assert report.targets == encoder.stats.targets


def test_bad_rows_are_counted_named_and_do_not_stop(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "bad.jsonl"
    good = '{"text": "fine"}\n'
    path.write_bytes(good.encode() + b'{"text": \n\xff\xfe\n{"text": null}\n[1]\n' + good.encode())
    report = look(SourceConfig(str(path)), pico_tokenizer).report
    assert (report.stats.rows, report.stats.bad_rows, report.stats.examples) == (6, 4, 2)
    assert report.stops
    assert [message.split(":")[1] for message in report.bad_rows] == ["2", "3", "4", "5"]
    assert all(message.startswith(str(path)) for message in report.bad_rows)
    skipped = look(SourceConfig(str(path), on_bad_row="skip"), pico_tokenizer).report
    assert skipped.stats == report.stats
    assert not skipped.stops


def test_only_the_first_bad_rows_are_told(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("no\n" * 500 + '{"text": "fine"}\n')
    report = look(SourceConfig(str(path)), pico_tokenizer).report
    assert report.stats.bad_rows == 500
    assert len(report.bad_rows) == 5


@pytest.mark.parametrize(
    ("content", "part"), [(b"", "is empty"), (b"no\nno\n", "holds no example"), (None, "not exist")]
)
def test_a_source_that_cannot_be_used_is_told(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase, content: bytes | None, part: str
) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    survey = look(SourceConfig(str(path)), pico_tokenizer)
    assert part in str(survey.report.error)
    assert survey.examples == []


def test_a_wrong_name_in_the_config_is_an_error(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(ConfigError, match="alpaca"):
        look(SourceConfig(path, format="alpacca"), pico_tokenizer)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, int]:
    """12 MiB of JSON lines, not held in memory: (path, rows, tokens); rows grow towards the end."""
    path, rows, tokens = tmp_path_factory.mktemp("large") / "large.jsonl", 120_000, 0
    with path.open("w") as file:
        for number in range(rows):
            length = 20 + number % 7 + 60 * number // rows
            tokens += length + 2  # <s> and </s>
            file.write(json.dumps({"text": "y" * length, "pad": "." * 30}) + "\n")
    return str(path), rows, tokens


def test_a_large_source_is_estimated_from_rows_of_all_its_parts(
    large: tuple[str, int, int], pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path, rows, tokens = large
    report = look(SourceConfig(path), pico_tokenizer, rows=1200, max_length=128).report
    assert not report.complete and not report.rows_exact
    assert report.stats.rows == 1200
    assert report.rows == pytest.approx(rows, rel=0.1)
    assert report.tokens == pytest.approx(tokens, rel=0.1)


def test_rows_0_reads_all(
    large: tuple[str, int, int], pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path, rows, tokens = large
    survey = look(SourceConfig(path), pico_tokenizer, rows=0, max_length=128)
    assert survey.report.complete and survey.report.rows_exact
    assert (survey.report.rows, survey.report.tokens) == (rows, tokens)
    assert len(survey.examples) == EXAMPLES_KEPT


def test_a_sample_reads_few_of_many_bytes(
    large: tuple[str, int, int], pico_tokenizer: PreTrainedTokenizerBase, monkeypatch: Any
) -> None:
    from controlllm.data.sources.lines import LineChunks

    given, read = [0], LineChunks.read_range

    def counting(self: LineChunks, *arguments: Any) -> Any:
        for located in read(self, *arguments):
            given[0] += 1
            yield located

    monkeypatch.setattr(LineChunks, "read_range", counting)
    look(SourceConfig(large[0]), pico_tokenizer, rows=100)
    assert 100 <= given[0] < 200  # one row more of each chunk tells whether it has ended


def test_rows_of_a_packed_file_are_not_guessed(tmp_path: Path, pico_tokenizer: Any) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(f'{{"text": "{"ab" * 400} {number}"}}\n' for number in range(25_000))
    chunks = open_chunks(SourceConfig(str(path)))
    assert chunks.num_rows is None
    assert count_rows(chunks) == 25_000  # Small enough to be counted.
    report = look(SourceConfig(str(path)), pico_tokenizer, rows=50).report
    assert (report.rows, report.rows_exact, report.stats.rows) == (25_000, False, 50)


def test_what_a_source_chooses_is_left_out(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": f"row {number % 10}"} for number in range(30)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    report = look(SourceConfig(path, deduplicate=True), pico_tokenizer).report
    assert (report.stats.duplicates, report.examples) == (20, 10)
    assert report.tokens == 10 * 7
    report = look(SourceConfig(path, deduplicate=True, sample_rows=4), pico_tokenizer).report
    assert (report.stats.duplicates, report.stats.filtered, report.examples) == (20, 6, 4)
    assert report.lengths is not None and sum(report.lengths.counts) == 4


def test_a_wanted_number_of_rows_scales_a_sample(
    large: tuple[str, int, int], pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    path, rows, tokens = large
    source = SourceConfig(path, sample_rows=rows // 4)
    report = look(source, pico_tokenizer, rows=1200, max_length=128).report
    assert report.examples == pytest.approx(rows / 4, rel=0.01)
    assert report.tokens == pytest.approx(tokens / 4, rel=0.05)


def test_prepared_tokens_tell_exact_numbers(
    large: tuple[str, int, int], pico_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path, rows, tokens = large
    source = SourceConfig(path)
    config = DataConfig(max_length=128, cache_dir=str(tmp_path))
    encoder = RowEncoder(source, pico_tokenizer, config, training=True)
    prepare_source(encoder, open_chunks(source))
    survey = survey_source(source, "train", pico_tokenizer, config, SurveyOptions(rows=10))
    assert survey.report.prepared is not None and survey.report.complete
    assert (survey.report.examples, survey.report.tokens) == (rows, tokens)
    assert survey.report.samples[1].place == f"prepared example {(rows - 1) * 1024 // 2047}"
    # Held-out sets are other examples where conversations are trained as a whole.
    other = DataConfig(max_length=128, cache_dir=str(tmp_path), mixed_training=True)
    again = survey_source(source, "train", pico_tokenizer, other, SurveyOptions(rows=10))
    assert again.report.prepared is None


def test_the_report_is_json(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "abc"}])
    values = json.loads(json.dumps(look(SourceConfig(path), pico_tokenizer).report.to_dict()))
    assert values["stats"]["tokens"] == 5
    assert values["lengths"]["counts"] == [0, 0, 0, 0, 1]
    spans = values["samples"][0]["spans"]
    assert spans[0] == {"text": "<s>", "kind": "context"}
    assert spans[1] == {"text": "abc</s>", "kind": "target"}


# --- the mix ---


def mixed(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Any:
    """Two sources of 50 rows with 10 and 20 tokens, and a replay of 10 rows with 10."""
    sources = {
        name: SourceConfig(write_rows(tmp_path / f"{name}.jsonl", [{"text": text}] * rows))
        for name, text, rows in (("a", "x" * 8, 50), ("b", "y" * 18, 50), ("old", "z" * 8, 10))
    }
    config = DataConfig(
        **{
            "train": [sources["a"], sources["b"]],
            "replay": [sources["old"]],
            "replay_share": 0.2,
            "max_length": 40,
            **settings,
        }
    )
    surveys = [look(source, tokenizer, max_length=40) for source in sources.values()]
    return config, surveys


def test_shares_fill_and_passes_by_hand(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    config, surveys = mixed(tmp_path, pico_tokenizer)
    mix = survey_mix(config, surveys, batch_size=4)
    assert mix is not None
    assert mix.names == ["a", "b", "old"]
    assert mix.shares == [[0.4, 0.4, 0.2]]
    assert mix.fill == 1.0  # 10s and 20s fill 40
    assert mix.tokens_per_item == 40
    # 100 slots are 4,000 tokens: 1,600 of 500, 1,600 of 1,000, 800 of 100.
    reports = [survey.report for survey in surveys]
    assert passes(config, mix, reports, items=100) == pytest.approx([3.2, 1.6, 8.0])
    size = train_size(config, reports)
    assert size is not None and (size.examples, size.tokens, size.exact) == (100, 1500, True)


def test_fixed_slots_are_looked_at_as_slots(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    config, surveys = mixed(tmp_path, pico_tokenizer, packing_strategy="fixed")
    mix = survey_mix(config, surveys, batch_size=4)
    assert mix is not None
    # 500 tokens of `a` fill 13 slots, 1,000 of `b` 25, 100 of `old` 3; by 0.4, 0.4, 0.2 of tokens:
    tokens = 1 / (0.4 / (500 / 13) + 0.4 / (1000 / 25) + 0.2 / (100 / 3))
    assert mix.tokens_per_item == pytest.approx(tokens, rel=0.01)
    assert mix.fill == pytest.approx(tokens / 40, rel=0.01)


def test_passes_follow_the_stages(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    stages = [StageConfig(1000, {"a": 1.0})]
    config, surveys = mixed(tmp_path, pico_tokenizer, stages=stages)
    mix = survey_mix(config, surveys, batch_size=4)
    assert mix is not None and mix.stage_lengths == [1000, None]
    # 800 + 1,200 of 500, 1,200 of 1,000, 200 + 600 of 100.
    reports = [survey.report for survey in surveys]
    assert passes(config, mix, reports, items=100) == pytest.approx([4.0, 1.2, 8.0])


def test_padding_is_what_the_real_batches_have(
    tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = {"packing": False, "mix_by": "rows", "replay": [], "replay_share": 0.0}
    config, surveys = mixed(tmp_path, pico_tokenizer, **settings)
    mix = survey_mix(config, surveys[:2], batch_size=2)
    assert mix is not None
    # Each batch has a row of 10 and one of 20, in 24 columns (a multiple of 8).
    assert (mix.rows_per_item, mix.tokens_per_item, mix.fill) == (2, 30, 30 / 48)


def test_rehearsal_has_its_share(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    config, surveys = mixed(tmp_path, pico_tokenizer)
    mix = survey_mix(config, surveys, 4, rehearsal_share=0.1)
    assert mix is not None
    assert mix.names[-1] == "rehearsal"
    assert mix.shares[0] == pytest.approx([0.35, 0.35, 0.2, 0.1])
    reports = [survey.report for survey in surveys]
    assert len(passes(config, mix, reports, items=100)) == 3


def test_no_mix_without_examples(tmp_path: Path, pico_tokenizer: PreTrainedTokenizerBase) -> None:
    config, surveys = mixed(tmp_path, pico_tokenizer)
    surveys[1] = look(SourceConfig(str(tmp_path / "nothing")), pico_tokenizer)
    assert survey_mix(config, surveys, batch_size=4) is None
