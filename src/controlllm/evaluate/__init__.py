"""Floor 3: the numbers that say what was learned and what was forgotten.

code         Programs that a model wrote, run behind walls and judged out of their reach
forgetting   Losses of a model and its base on the same text, and the dial between them
items        Every question put to every model, kept item by item
judging      A verdict by the rules of a gate, and the page that shows what speaks for it
suites       Benchmarks by name, their tasks and where their data lie
own_text     What a model writes by itself, as held-out sets of what it knew
sequence     What became of each task in runs that went on from one another
statistics   Is a difference real: paired intervals, exact tests, what n items could show
texts        What a model writes, held against what it should have written

Everything runs in evaluation mode without gradients, leaves the model as it was found, counts every
target token once, and gives the same numbers however the batches are cut.
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.common.text.tables import format_table
    from controlllm.evaluate.code import (
        CodeRunner,
        SandboxSettings,
        check_walls,
        code_runner,
        mean_pass_at_k,
    )
    from controlllm.evaluate.forgetting.alphas import DEFAULT_ALPHAS
    from controlllm.evaluate.forgetting.averaging import average_weights, averaging_curve
    from controlllm.evaluate.forgetting.calibrate import calibrate
    from controlllm.evaluate.forgetting.dial import DialCurve, DialPoint
    from controlllm.evaluate.forgetting.expanded import recording_alpha
    from controlllm.evaluate.forgetting.losses import (
        LossReport,
        evaluate_losses,
        evaluating,
        warn_if_not_finite,
    )
    from controlllm.evaluate.forgetting.plot import plot_curves
    from controlllm.evaluate.forgetting.reference import Reference
    from controlllm.evaluate.forgetting.retention import (
        RetentionReport,
        mean_loss,
        measure_retention,
        worst_forgetting,
    )
    from controlllm.evaluate.forgetting.tables import losses_table
    from controlllm.evaluate.items.comparison import Change, Outcome, Reading, compare_models
    from controlllm.evaluate.items.grading import code_grader
    from controlllm.evaluate.items.identity import base_identity, model_identity, tokenizer_identity
    from controlllm.evaluate.items.loading import (
        Draw,
        LoadedSuite,
        available,
        load_questions,
        load_tasks,
    )
    from controlllm.evaluate.items.metrics import usual_asked
    from controlllm.evaluate.items.records import READINGS, Asked, Evaluation, Item, Subject
    from controlllm.evaluate.items.running import (
        Grader,
        Target,
        ask_model,
        evaluate_suite,
        stored_targets,
        targets_of,
        vllm_targets,
    )
    from controlllm.evaluate.items.store import AnswerStore, default_store
    from controlllm.evaluate.items.tables import numbers_of, readings_table, scores_table
    from controlllm.evaluate.items.tasks import LoadedBenchmark, load_benchmark
    from controlllm.evaluate.judging.gate import Gate, Rule, read_gate
    from controlllm.evaluate.judging.ruling import Judgement, Ruling, judge
    from controlllm.evaluate.judging.runs import read_evaluations
    from controlllm.evaluate.own_text.certificate import Certificate, certify
    from controlllm.evaluate.own_text.sets import write_own_text
    from controlllm.evaluate.own_text.settings import OwnTextConfig
    from controlllm.evaluate.own_text.writing import Writer
    from controlllm.evaluate.statistics import (
        Difference,
        Interval,
        Verdict,
        at_least,
        detectable_difference,
        holm,
        mcnemar,
        paired_bootstrap,
        paired_difference,
        wilson,
    )
    from controlllm.evaluate.suites.stock import find_tasks
    from controlllm.evaluate.suites.suite import load_suite

__all__ = [
    "DEFAULT_ALPHAS",
    "READINGS",
    "AnswerStore",
    "Asked",
    "Certificate",
    "Change",
    "CodeRunner",
    "DialCurve",
    "DialPoint",
    "Difference",
    "Draw",
    "Evaluation",
    "Gate",
    "Grader",
    "Interval",
    "Item",
    "Judgement",
    "LoadedBenchmark",
    "LoadedSuite",
    "LossReport",
    "Outcome",
    "OwnTextConfig",
    "Reading",
    "Reference",
    "RetentionReport",
    "Rule",
    "Ruling",
    "SandboxSettings",
    "Subject",
    "Target",
    "Verdict",
    "Writer",
    "ask_model",
    "at_least",
    "available",
    "average_weights",
    "averaging_curve",
    "base_identity",
    "calibrate",
    "certify",
    "check_walls",
    "code_grader",
    "code_runner",
    "compare_models",
    "default_store",
    "detectable_difference",
    "evaluate_losses",
    "evaluate_suite",
    "evaluating",
    "find_tasks",
    "format_table",
    "holm",
    "judge",
    "load_benchmark",
    "load_questions",
    "load_suite",
    "load_tasks",
    "losses_table",
    "mcnemar",
    "mean_loss",
    "mean_pass_at_k",
    "measure_retention",
    "model_identity",
    "numbers_of",
    "paired_bootstrap",
    "paired_difference",
    "plot_curves",
    "read_evaluations",
    "read_gate",
    "readings_table",
    "recording_alpha",
    "scores_table",
    "stored_targets",
    "targets_of",
    "tokenizer_identity",
    "usual_asked",
    "vllm_targets",
    "warn_if_not_finite",
    "wilson",
    "worst_forgetting",
    "write_own_text",
]

__getattr__, __dir__ = lazy_names(__name__)
