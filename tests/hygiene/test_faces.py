"""`train` takes other rooms by their faces, and what no user needs by a door that is named here."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "controlllm"
ROOMS = ("checkpoint", "data", "evaluate", "expansion", "inference")
DOORS = {
    "controlllm.checkpoint.models.whole": "a model's files, before a sharded model reads them",
    "controlllm.checkpoint.training.optimizer": "the parts of an optimizer's state by name",
    "controlllm.checkpoint.training.saved": "how an optimizer's tensors are called",
    "controlllm.checkpoint.training.shards": "tensors read in parts",
    "controlllm.checkpoint.training.state": "the values of a checkpoint without its tensors",
    "controlllm.evaluate.own_text": "a face of its own: what a model writes by itself",
    "controlllm.evaluate.texts": "a face of its own: texts and their metrics",
    "controlllm.expansion.files.base_files": "a base's tensors one by one",
    "controlllm.expansion.files.base_record": "a base that is about to change",
    "controlllm.expansion.files.fingerprint": "the identity of a base before it is quantised",
    "controlllm.expansion.files.lineage": "the stages that a model was trained after",
    "controlllm.expansion.files.places": "where a run's own files lie",
    "controlllm.expansion.files.records": "the config of a model or a sidecar without its tensors",
    "controlllm.expansion.files.sidecar": "the identity of a base that is expanded",
    "controlllm.expansion.method.ends": "the head whose outputs may be -inf",
    "controlllm.expansion.method.terms": "the divergence of a loop that adds it up itself",
    "controlllm.expansion.method.unread": "which settings of an expansion are read",
    "controlllm.expansion.surgery.anatomy": "where the parts of a decoder hang",
}
"""Modules behind a face that `train` imports, and for what."""


def imported(file: Path) -> set[str]:
    """The modules of other rooms that a file imports from."""
    nodes = ast.walk(ast.parse(file.read_text()))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in modules if name.split(".")[1:2] and name.split(".")[1] in ROOMS}


def test_train_goes_by_faces_and_doors() -> None:
    verbs = [SOURCE / "cli" / f"{verb}.py" for verb in ("launch", "plan", "train")]
    used = {
        name: file
        for file in [*(SOURCE / "train").rglob("*.py"), *verbs]
        for name in imported(file)
    }
    behind = {name: file for name, file in used.items() if name.count(".") > 1}
    wrong = {name: str(file) for name, file in behind.items() if name not in DOORS}
    assert not wrong, "import it from the room's face, or say in DOORS why not"
    assert not DOORS.keys() - behind.keys(), "these doors are not used any more"
