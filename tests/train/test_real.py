"""A real pre-trained model learns a real new domain."""

import pytest

from controlllm.train import RunConfig, train


@pytest.fixture
def sets(shared_data, tmp_path):
    """Shakespeare to learn, stories to retain: the ends of the files are held out."""
    texts = {
        "shakespeare": (shared_data / "text/tinyshakespeare/input.txt").read_text(),
        "stories": (shared_data / "text/tinystories_excerpt/tinystories.txt").read_text(),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text[:60_000])
        (tmp_path / f"{name}_heldout.txt").write_text(text[-4_000:])
    return tmp_path


def run(sets, stories260k, name, **over):
    values = {
        "model": {"model_name_or_path": str(stories260k)},
        "data": {
            "train": [{"path": str(sets / "shakespeare.txt")}],
            "learn": [{"path": str(sets / "shakespeare_heldout.txt"), "name": "shakespeare"}],
            "retain": [{"path": str(sets / "stories_heldout.txt"), "name": "stories"}],
            "max_length": 128,
        },
        "training": {
            "output_dir": str(sets / name),
            "max_steps": 20,
            "per_device_train_batch_size": 4,
            "learning_rate": 2e-3,
            "eval_steps": 20,
        },
        "rehearsal": {"num_sequences": 16} if name == "retain" else {},
        "logging": {"report_to": ["jsonl"]},
    }
    return train(RunConfig.from_dict(values | over)).history[-1]


def test_control_learns_and_forgets_less_than_full_tuning(sets, stories260k):
    full = run(sets, stories260k, "full", method="full")
    control = run(
        sets, stories260k, "retain", preset="retain", expansion={"layers": [0, 1, 2, 3, 4]}
    )
    for row in (full, control):
        assert row["learn/shakespeare/base_loss"] == pytest.approx(5.1, abs=0.4)
        assert row["learn/shakespeare/gain"] > 1.0
    assert control["retain/stories/forgetting"] < full["retain/stories/forgetting"]
    assert control["retain/stories/kl"] < full["retain/stories/kl"]
