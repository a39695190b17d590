"""`controlllm probe` on folders, and what it refuses."""

import pytest
import yaml
from tests.evaluate.test_html_report import harmless
from tests.probe.conftest import trained

from controlllm.cli import main
from controlllm.train.config.config_io import read_yaml
from controlllm.train.config.run_config import RunConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory, pico_llama, pico_tokenizer):
    """A saved model whose copies say more surely what the base says."""
    folder = tmp_path_factory.mktemp("model")
    trained(pico_llama(), expand_ends=True).save_pretrained(folder / "full")
    pico_llama().save_pretrained(folder / "base")
    for name in ("full", "base"):
        pico_tokenizer.save_pretrained(folder / name)
    (folder / "new.txt").write_text("the cat sat on the mat. " * 12)
    (folder / "old.jsonl").write_text('{"text": "it was so"}\n{"text": "once <img src=x> more"}\n')
    return folder


def probe(model, *words, name="full"):
    bounds = ["--max_length", "32", "--max_texts", "3", "--shown", "1", "--max_new_tokens", "2"]
    return main(["probe", str(model / name), "--texts", str(model / "new.txt"), *bounds, *words])


def test_a_page_a_board_and_layers(model, tmp_path, capsys):
    out, layers, board = (str(tmp_path / name) for name in ("p.html", "l.yaml", "board"))
    old = str(model / "old.jsonl")
    more = ["--retain_texts", old, "--out", out, "--layers", layers, "--tensorboard", board]
    assert probe(model, *more, "--probes", "blocks,analogies,tokens") == 0
    printed = capsys.readouterr().out
    page = harmless((tmp_path / "p.html").read_text())
    assert "Leave one block out" in page.words and "One prompt over alpha" not in page.words
    assert "2 texts" in page.words and "blocks: The loss on the learned texts" in printed
    assert "2 sets of vectors" in printed
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(board).Reload()
    assert [one.step for one in events.Scalars("probe/gain_lost")] == [1, 3]
    assert len(list((tmp_path / "board").rglob("tensors.tsv"))) == 2
    metadata = next((tmp_path / "board").rglob("metadata.tsv")).read_text().splitlines()
    assert metadata[0] == "phrase\trelation\tbranch" and len(metadata) == 1 + 3 * 40
    found = (tmp_path / "l.yaml").exists()
    assert found or "is not written: no layer is suggested" in printed
    if found:
        values = {"model": {"model_name_or_path": "base"}, "data": {"train": [{"path": "x"}]}}
        run = RunConfig.from_dict(values | yaml.safe_load((tmp_path / "l.yaml").read_text()))
        assert set(run.expansion.layers) <= {1, 3} and run.expansion.num_blocks is None
        assert read_yaml(layers)["expansion"]["layers"] == run.expansion.layers


def test_pages_of_ours_are_replaced_files_of_others_are_not(model, tmp_path, capsys):
    out = tmp_path / "p.html"
    assert probe(model, "--out", str(out), "--probes", "alpha", "--alpha", "0.25") == 0
    assert "Alpha is 0.250 in all of them" in out.read_text()
    assert probe(model, "--out", str(out), "--probes", "alpha", "--alpha", "0") == 0
    out.write_text("mine")
    layers = tmp_path / "l.yaml"
    layers.write_text("mine")
    assert probe(model, "--out", str(out)) == 2
    assert probe(model, "--out", str(tmp_path / "q.html"), "--layers", str(layers)) == 2
    assert out.read_text() == layers.read_text() == "mine"
    said = capsys.readouterr().err
    assert "is no page of ours" in said and "was not written by us" in said


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        (["--probes", "movementt"], "full", "Did you mean 'movement'"),
        (["--alpha", "2"], "full", "alpha"),
        (["--max_length", "2"], "full", "max_length=2"),
        (["--layers", "l.yaml", "--probes", "alpha"], "full", "name it in --probes"),
        (
            ["--prompt", "x", "--probes", "alpha,lens"],
            "full",
            "prompt is what the probe `dial` reads",
        ),
        (["--alphas", "[]"], "full", "names no setting of the dial"),
        (["--probes", "alpha"], "base", "LlamaForCausalLM is not expanded"),
    ],
)
def test_what_cannot_be(model, tmp_path, monkeypatch, capsys, words, name, said):
    monkeypatch.chdir(tmp_path)
    given = ["probe", str(model / name), "--texts", str(model / "new.txt"), *words]
    assert main(given) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "probe.html").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "texts.txt"), (b"", "texts.txt"), (b"\xff\xfe\x00bad", "texts.txt")],
    ids=["missing", "empty", "no text"],
)
def test_texts_that_cannot_be_read(model, tmp_path, capsys, content, said):
    texts = tmp_path / "texts.txt"
    if content is not None:
        texts.write_bytes(content)
    assert main(["probe", str(model / "full"), "--texts", str(texts)]) == 2
    assert said in capsys.readouterr().err
    assert main(["probe", str(model / "full"), "--out", str(tmp_path / "x.html")]) == 2
    assert "give some, --texts FILE" in capsys.readouterr().err
