"""Suite files: those that ship, those of a user, and those of somebody who means harm."""

import dataclasses

import pytest
import yaml

from controlllm.common.errors import ConfigError
from controlllm.evaluate.suites import load_suite, suite_names
from controlllm.evaluate.suites.stock import OWN, read_template

SHIPPED = ["chinese", "code", "cpt", "maths", "original", "quick", "small"]
MINE = """
about: My own.
benchmarks:
  - {name: mine, tasks: [my_task], kind: choice, items: 100, strict: "acc,none", chance: 0.5}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return path

    return write


def test_shipped_suites_are_there():
    assert suite_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suites_load(name):
    suite = load_suite(name)
    assert suite.name == name and suite.about.endswith(".")
    for one in suite.benchmarks:
        assert one.dataset is not None
        assert one.kind in ("code", "likelihood") or one.strict is not None
        assert (one.lenient is None) == (one.kind != "generate")
        if one.template is not None:
            read_template(one.template)


def test_what_items_can_show_is_as_published():
    """The points of Miller's formula at 80 % power and 20 % discordant items."""
    expected = {
        ("code", "humaneval"): 9.8,
        ("code", "mbpp_plus"): 6.4,
        ("original", "gpqa"): 5.9,
        ("original", "arc_challenge"): 3.7,
        ("maths", "gsm8k"): 3.4,
        ("maths", "math_hard"): 3.4,
        ("original", "mmlu"): 1.1,
    }
    found = {
        (suite, name): round(100 * load_suite(suite).benchmark(name).detectable, 1)
        for suite, name in expected
    }
    assert found == expected


def test_quick_generates_nothing():
    kinds = {one.kind for one in load_suite("quick").benchmarks}
    assert kinds == {"choice", "likelihood"}


def test_own_tasks_name_no_code():
    for path in OWN.iterdir():
        assert "!function" not in path.read_text(), path
        yaml.safe_load(path.read_text())  # knows no tags


def test_ones_own_suite_by_name_and_by_path(write, tmp_path):
    path = write(MINE)
    assert "mine" in suite_names(tmp_path)
    (benchmark,) = load_suite("mine", tmp_path).benchmarks
    assert benchmark == load_suite(path).benchmark("mine")
    assert (benchmark.tasks, benchmark.shots, benchmark.prompt) == (("my_task",), None, "auto")


def test_the_suite_of_the_page(write, repository):
    """docs/suites.md shows one."""
    text = (repository / "docs" / "suites.md").read_text()
    (benchmark,) = load_suite(write(text.split("```yaml\n")[1].split("```")[0])).benchmarks
    assert dataclasses.replace(benchmark, prompt="auto") == load_suite("maths").benchmark("gsm8k")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("original_", "suite='original_' is not known.*Did you mean 'original'"),
        ("../original", "suite='../original' is not known"),
        ("absent.yaml", "cannot read the suite absent.yaml: No such file"),
    ],
)
def test_unknown_suites(name, told):
    with pytest.raises(ConfigError, match=told):
        load_suite(name)


def test_unknown_benchmarks():
    with pytest.raises(ConfigError, match=r"benchmark of suite maths='gsm8' .*mean 'gsm8k'"):
        load_suite("maths").benchmark("gsm8")


def test_a_name_that_is_taken(write, tmp_path):
    write(MINE, "quick")
    with pytest.raises(ConfigError, match=r"comes with the package and lies in .*rename quick"):
        load_suite("quick", tmp_path)
    (tmp_path / "own.yml").write_text(MINE)
    write(MINE, "own")
    with pytest.raises(ConfigError, match="have one name"):
        suite_names(tmp_path)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"suite_dir=.*is not a folder"):
        suite_names(tmp_path / "absent")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("tasks:", "task:", "benchmark 'mine': field='task' .*mean 'tasks'"),
        ("[my_task]", "[]", "benchmark 'mine': tasks is empty"),
        ("[my_task]", "[../x]", r"tasks\[0\]='../x' is no name"),
        ("[my_task]", "[3]", r"tasks\[0\]=3 must be a text"),
        ("name: mine", "name: ../mine", "name='../mine' is no name"),
        ("kind: choice", "kind: choices", "kind='choices' .*mean 'choice'"),
        ("items: 100", "items: 0", "items=0 is out of range"),
        ("items: 100", "items: many", "items='many' must be a whole number"),
        ("chance: 0.5", "chance: 5", "chance=5.0 is out of range"),
        ("chance: 0.5", "shots: 101", "shots=101 is out of range"),
        ('"acc,none"', "acc", "strict='acc' names no metric"),
        ('"acc,none"', '"extract:letters"', "strict: extractor='letters' .*mean 'letter'"),
        ("chance: 0.5", "dataset: ../../etc", "dataset='../../etc' is no name"),
        ("chance: 0.5", "config: a/../b", "config='a/../b' is no name"),
        ("chance: 0.5", "template: /etc/x", "template='/etc/x' is no name"),
        ("chance: 0.5", "splits: []", "splits is empty"),
        ("name: mine, ", "", "benchmarks.0.: 'name' is missing: what tables call it"),
        ("about: My own.", "", "`about` must be a text"),
        ("about: My own.", "about: a\nsuites: b", "field='suites' is not known"),
        ("chance: 0.5}", "chance: 0.5}\n  - 3", r"benchmarks\[1\] must be a mapping"),
        ("benchmarks:", "benchmarks: []\nx:", "field='x' is not known"),
    ],
)
def test_wrong_fields_are_told_with_file_and_field(write, old, new, told):
    assert old in MINE
    path = write(MINE.replace(old, new))
    with pytest.raises(ConfigError, match=told) as error:
        load_suite(path)
    assert str(path) in str(error.value)


def test_a_benchmark_given_twice(write):
    line = MINE.strip().splitlines()[-1]
    with pytest.raises(ConfigError, match="'mine' is given twice"):
        load_suite(write(f"{MINE}{line}\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("about: !!python/object/apply:os.system [true]", "is not valid YAML"),
        ("about: !function os.system\nbenchmarks: []", "is not valid YAML"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: " + "[" * 60 + "*b" + "]" * 60, "nested deeper"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{k}: &{k} [{','.join([f'*{p}'] * 9)}]\n"
                for p, k in zip("abcdef", "bcdefg", strict=True)
            ),
            "more than 50,000 values",
        ),
        ("about: &a [*a]", "contains itself"),
        ("about: x\nabout: y", "about is given twice"),
        ("# " + "x" * 2**20, "more than 1 MiB"),
        ("- a list", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("about: x\nbenchmarks: [{name: a", "is not valid YAML"),
    ],
)
def test_hostile_files(write, text, told):
    with pytest.raises(ConfigError, match=told):
        load_suite(write(text))
