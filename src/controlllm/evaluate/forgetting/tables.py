"""The table of losses: base and trained side by side."""

from collections.abc import Mapping

from controlllm.common.text.tables import format_number, format_table
from controlllm.evaluate.forgetting.losses import perplexity
from controlllm.evaluate.forgetting.retention import RetentionReport

__all__ = ["losses_table"]


def losses_table(reports: Mapping[str, RetentionReport]) -> str:
    """Base and trained losses of each set, side by side with the difference."""
    headers = ["set", "tokens", "base loss", "trained loss", "difference", "base ppl", "ppl", "KL"]
    rows = [
        [
            name,
            report.tokens,
            report.base_loss,
            report.loss,
            format_number(report.forgetting, signed=True),
            perplexity(report.base_loss),
            perplexity(report.loss),
            report.kl,
        ]
        for name, report in reports.items()
    ]
    return format_table(headers, rows)
