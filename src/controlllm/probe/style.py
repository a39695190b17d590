"""How the pieces of `drawing` look, on top of the style of every page of ours."""

from controlllm.evaluate.judging.style import STYLE as COMMON
from controlllm.probe.drawing import SHADES

__all__ = ["STYLE"]


def _shades() -> str:
    """Plus in blue, minus in orange; mixed with the page's own background, light or dark."""
    rules = []
    for number in range(SHADES + 1):
        share = round(100 * number / SHADES)
        for name, colour in (("q", "--s0"), ("m", "--s1")):
            fill = f"color-mix(in oklab,var({colour}) {share}%,var(--card))"
            soft = f"color-mix(in oklab,var({colour}) {round(0.55 * share)}%,var(--back))"
            rules.append(
                f"rect.{name}{number},.box.{name}{number}{{fill:{fill};background:{fill}}}"
            )
            rules.append(f".tok.{name}{number},td.{name}{number}{{background:{soft}}}")
    return "\n".join(rules)


STYLE = (
    COMMON
    + """
figure.wide{max-width:none}
.plot.heat{width:auto;max-width:none}
.heat rect{stroke:none}.heat .token{font:11px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",
monospace}
.scroll>.heat{margin:6px}
.scale{display:flex;flex-wrap:wrap;align-items:center;gap:4px 6px;color:var(--soft);
font-size:.875rem}
.boxes{display:inline-flex;border:1px solid var(--line);border-radius:3px;overflow:hidden}
.box{display:inline-block;width:11px;height:13px}
pre.tokens{font-size:.9rem;line-height:1.75;max-height:28em}
.tok{border-radius:3px;padding:2px 0;box-decoration-break:clone}
.ask{border-left:4px solid var(--s0);padding:2px 0 2px 12px;margin:8px 0}
.ask p{margin:2px 0}
.result{font-weight:600}
.result.open{font-weight:400;color:var(--open)}
.lens td{white-space:nowrap;font:12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;
padding:3px 6px}
.lens th{padding:3px 8px;white-space:nowrap;font-weight:400}
.lens thead th{font:12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.lens tbody th[scope=row]{position:sticky;left:0;background:var(--card)}
.lens td.hit{font-weight:700;text-decoration:underline}
.lens tbody{border-top:2px solid var(--line)}
.maps{display:flex;flex-wrap:wrap;gap:14px}.maps figure{margin:0;max-width:100%}
.maps .scroll{border:0;margin:0}
#probe-blocks .bar{width:120px}.carries{white-space:nowrap}
@media print{.tok,rect,.box,td{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.scroll>.heat{max-width:100%;height:auto}pre.tokens{max-height:none}}
"""
    + _shades()
)
