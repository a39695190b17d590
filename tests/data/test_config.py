"""Wrong settings are named with their value; the config loads from plain YAML types."""

import math
from dataclasses import asdict
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from controlllm.common.errors import ConfigError
from controlllm.data import DataConfig, SourceConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": " "}, "path=' '"),
        ({"weight": 0}, "weight=0"),
        ({"weight": -1.5}, "weight=-1.5"),
        ({"weight": math.nan}, "weight=nan is out of range; allowed: above 0"),
        ({"sample_rows": 2**70}, "sample_rows=1180591620717411303424 is out of range"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"text_unit": "lines"}, "Did you mean 'line'"),
        ({"on_bad_row": "ignore"}, "on_bad_row='ignore'"),
        ({"part": "test"}, "part=.test."),
    ],
)
def test_wrong_source_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SourceConfig(**{"path": "a.jsonl", **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": 1}, "max_length=1"),
        ({"packing_lookahead": 0}, "packing_lookahead=0"),
        ({"train_on": []}, "train_on"),
        ({"mix_by": "token"}, "Did you mean 'tokens'"),
        ({"long_chat": "cut"}, "long_chat=.cut."),
        ({"long_text": "cut"}, "long_text='cut'"),
        ({"replay_share": 1.0}, "replay_share=1.0"),
        ({"replay_share": 0.1}, "replay_share=0.1 with 0 replay"),
        ({"replay": [SourceConfig("a.txt")]}, "replay_share=0.0 with 1 replay"),
        (
            {
                "train": [SourceConfig("a.txt", part="train")],
                "learn": [SourceConfig("a.txt", part="held_out", held_out=0.1)],
            },
            r"'a\.txt' is split in two ways: held_out=0\.05.*held_out=0\.1",
        ),
        (
            {"retain": [SourceConfig("a/test.txt"), SourceConfig("b/test.txt")]},
            r"'test' is the name of two sources: data\.retain 'a/test\.txt', and data\.retain "
            r"'b/test\.txt'\..* set `name` of one of them, e\.g\. `name: test-b`",
        ),
        (
            {"train": [SourceConfig("a/b", subset="one"), SourceConfig("a/b", subset="two")]},
            r"'b' is the .*'a/b' subset='one', and .*'a/b' subset='two'.* e\.g\. `name: b-two`",
        ),
        (
            {
                "train": [SourceConfig("a.txt", name="mine")],
                "replay": [SourceConfig("b.txt", name="mine", split="x")],
                "replay_share": 0.1,
            },
            r"'mine' .*data\.train 'a\.txt', and data\.replay 'b\.txt' split='x'.*`name: mine-x`",
        ),
        ({"train": [SourceConfig("a.txt"), SourceConfig("a.txt")]}, r"e\.g\. `name: a-2`"),
    ],
)
def test_wrong_data_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**wrong)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/gsm8k/train.jsonl.gz", "train"),
        ("data/poems/", "poems"),
        ("data/poems/**/*.json", "poems"),
        ("openai/gsm8k", "gsm8k"),
        ("*.txt", "source"),
    ],
)
def test_names_come_from_paths(path: str, name: str) -> None:
    assert SourceConfig(path).name == name
    assert SourceConfig(path, name="mine").name == "mine"


def test_a_held_out_set_may_be_called_as_what_it_was_held_out_of() -> None:
    """Learn, retain and train are told apart by their metrics' names."""
    train, held_out = SourceConfig("a.txt", part="train"), SourceConfig("a.txt", part="held_out")
    config = DataConfig(train=[train], learn=[held_out], retain=[SourceConfig("b/a.txt")])
    assert {s.name for s in [*config.train, *config.learn, *config.retain]} == {"a"}


def test_yaml_round_trip() -> None:
    parser = ArgumentParser()
    parser.add_argument("--data", type=DataConfig)
    values = {"train": [{"path": "a.jsonl", "columns": {"prompt": "q"}}], "max_length": 64}
    loaded = parser.instantiate_classes(parser.parse_object({"data": values})).data
    assert loaded == DataConfig([SourceConfig("a.jsonl", columns={"prompt": "q"})], max_length=64)
    again = parser.instantiate_classes(parser.parse_object({"data": asdict(loaded)})).data
    assert again == loaded


def test_a_source_that_is_held_out_is_not_trained_on_as_a_whole() -> None:
    held_out = SourceConfig("a.txt", part="held_out")
    with pytest.raises(ConfigError, match="trained on as a whole by 'a'"):
        DataConfig(train=[SourceConfig("a.txt")], learn=[held_out])
    DataConfig(train=[SourceConfig("a.txt", part="train")], learn=[held_out])
    DataConfig(train=[SourceConfig("b.txt")], learn=[held_out])


@pytest.mark.parametrize("alone", [{"held_out": 0.2}, {"group_by": "id"}, {"phases": 2}])
def test_fields_that_do_nothing_alone_are_refused(alone: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="would not be used: it does nothing without"):
        SourceConfig("a.txt", **alone)


def test_one_wanted_value_needs_no_list() -> None:
    assert SourceConfig("a.txt", where={"lang": "en"}).where == {"lang": ["en"]}
