"""Floor 3: the numbers that say what was learned and what was forgotten.

| module | what it answers |
|---|---|
| `losses` | what loss does a model have on a set? |
| `reference` | what does its base say to the same input? |
| `retention` | how far did it move: forgetting, gain, KL(base || trained) per token |
| `dial`, `calibrate` | which alpha learns most within a budget of forgetting? |
| `averaging` | the same curve for full tuning: weights averaged with the base |
| `expanded` | which alpha did an expanded model use, token by token? |
| `harness`, `task_scores` | lm-evaluation-harness tasks, base and trained document by document |
| `statistics` | is a difference real: paired intervals, exact tests, what n items could show |
| `report`, `plot` | tables and pictures of these |

Everything runs in evaluation mode without gradients, leaves the model as it was found, counts every
target token once, and gives the same numbers however the batches are cut.
"""

from controlllm.common.text.tables import format_table
from controlllm.evaluate.averaging import average_weights, averaging_curve
from controlllm.evaluate.calibrate import calibrate
from controlllm.evaluate.dial import DEFAULT_ALPHAS, DialCurve, DialPoint
from controlllm.evaluate.harness import HarnessConfig, find_tasks, run_tasks
from controlllm.evaluate.losses import LossReport, evaluate_losses, evaluating, warn_if_not_finite
from controlllm.evaluate.plot import plot_curves
from controlllm.evaluate.reference import Reference
from controlllm.evaluate.report import losses_table
from controlllm.evaluate.retention import (
    RetentionReport,
    mean_loss,
    measure_retention,
    worst_forgetting,
)
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
from controlllm.evaluate.task_scores import TaskReport, TaskScore

__all__ = [
    "DEFAULT_ALPHAS",
    "DialCurve",
    "DialPoint",
    "Difference",
    "HarnessConfig",
    "Interval",
    "LossReport",
    "Reference",
    "RetentionReport",
    "TaskReport",
    "TaskScore",
    "Verdict",
    "at_least",
    "average_weights",
    "averaging_curve",
    "calibrate",
    "detectable_difference",
    "evaluate_losses",
    "evaluating",
    "find_tasks",
    "format_table",
    "holm",
    "losses_table",
    "mcnemar",
    "mean_loss",
    "measure_retention",
    "paired_bootstrap",
    "paired_difference",
    "plot_curves",
    "run_tasks",
    "warn_if_not_finite",
    "wilson",
    "worst_forgetting",
]
