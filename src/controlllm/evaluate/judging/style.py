"""How a page looks: light and dark, wide, on a phone, and on paper."""

__all__ = ["STYLE"]

STYLE = """
:root{color-scheme:light dark;--back:#fff;--card:#f6f7f9;--text:#1b1f24;--soft:#59636e;
--line:#d5dae0;--good:#116b3a;--good-back:#d9f2e3;--bad:#a5192b;--bad-back:#fbdfe2;
--open:#7a5200;--open-back:#fcedc8;--s0:#0b62a8;--s1:#c24a00;--s2:#1a7f5a;--s3:#9a3a8c;
--s4:#8a6d00;--s5:#0088a8;--s6:#5b4bc4;--s7:#6b6b6b}
@media (prefers-color-scheme:dark){:root{--back:#14181d;--card:#1d232a;--text:#e8ecf0;
--soft:#a3adb8;--line:#38414b;--good:#7fdca4;--good-back:#163a27;--bad:#ff9aa5;--bad-back:#4a1a20;
--open:#f3cd7a;--open-back:#42330f;--s0:#6cb6f5;--s1:#ff9d5c;--s2:#5fd0a3;--s3:#e48fd6;
--s4:#e0c04f;--s5:#58cfe8;--s6:#a99cf7;--s7:#b0b0b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:44px 0 8px;padding-top:10px;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:24px 0 6px;overflow-wrap:anywhere}
p{margin:6px 0;max-width:76ch;overflow-wrap:anywhere}
.soft,small,figcaption{color:var(--soft);font-size:.875rem}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:14px 0 0;font-size:.925rem}
a{color:var(--s0)}
.verdict{border-left:6px solid var(--line);background:var(--card);border-radius:6px;
padding:12px 16px;margin:10px 0}
.verdict p{max-width:none}
.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--bad)}
.verdict.open{border-color:var(--open)}
.verdict .word{font-size:1.3rem;margin-right:10px}
.word{display:inline-block;font-weight:650;border-radius:5px;padding:1px 8px;white-space:nowrap;
background:var(--card)}
.word.good,.good-text{color:var(--good)}.word.good{background:var(--good-back)}
.word.bad,.bad-text{color:var(--bad)}.word.bad{background:var(--bad-back)}
.open-text{color:var(--soft)}
.word.open{color:var(--open);background:var(--open-back)}
.scroll{overflow-x:auto;margin:10px 0;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody:last-child tr:last-child>*{border-bottom:0}
tbody tr:last-child>*{border-bottom-color:var(--soft)}
thead th{background:var(--card);font-weight:600;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}
td.t{white-space:nowrap}
th.name{min-width:11rem;max-width:19rem;font-weight:400;overflow-wrap:anywhere}
tbody th[scope=rowgroup]{font-weight:400;padding-top:12px;background:var(--card)}
.about{position:sticky;left:10px;width:max-content;max-width:min(66rem,100vw - 78px)}
.about b,th.name b{font-size:1rem}
td.long{overflow-wrap:anywhere;min-width:14rem}
.bar{display:block;width:200px;height:18px}
.bar .good{fill:var(--good)}.bar .bad{fill:var(--bad)}.bar .open{fill:var(--soft)}
.bar rect{opacity:.55}.zero{stroke:var(--soft);stroke-dasharray:2 2}
.estimate{stroke:var(--text);stroke-width:2}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:20px}
figure{margin:8px 0;max-width:540px}
.plot{display:block;width:100%;height:auto}
.plot text{fill:var(--text);font-size:12px}.plot .tick{fill:var(--soft);font-size:11px}
.plot .label{font-weight:650;stroke:var(--back);stroke-width:3px;paint-order:stroke}
.grid{stroke:var(--line)}.rule{stroke:var(--soft);stroke-dasharray:5 3}
.line{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 4}
.whisker{stroke-width:1.5;opacity:.75}
circle{stroke:var(--back);stroke-width:1}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;padding:0;margin:4px 0;
font-size:.875rem}
.legend li{overflow-wrap:anywhere}
.legend span{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:6px}
SERIES
details{margin:8px 0;border:1px solid var(--line);border-radius:6px;padding:0 12px}
summary{cursor:pointer;padding:8px 0;font-weight:600;overflow-wrap:anywhere}
details[open]>summary{border-bottom:1px solid var(--line);margin-bottom:8px}
article{margin:0 0 18px;padding:0 0 12px;border-bottom:1px solid var(--line)}
article:last-child{border:0;margin:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:10px}
pre{margin:4px 0;padding:8px 10px;background:var(--card);border-radius:6px;white-space:pre-wrap;
overflow-wrap:anywhere;font:.84rem/1.45 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;
max-height:24em;overflow-y:auto;unicode-bidi:plaintext;text-align:start}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:2px 14px;margin:8px 0;
font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;min-width:0}
footer{margin-top:40px;color:var(--soft);font-size:.85rem}
@media (max-width:560px){dl{grid-template-columns:1fr}dd{margin-bottom:6px}
th,td{padding:5px 7px}.verdict .word{display:table;margin-bottom:4px}
th.name{min-width:8.5rem}}
@media print{nav{display:none}main{max-width:none;padding:0}.scroll{overflow:visible}
pre{max-height:none;overflow:visible}tr,figure,article{break-inside:avoid}
h2,h3,summary{break-after:avoid}
details::details-content{content-visibility:visible;height:auto}}
""".replace(
    "SERIES",
    "".join(
        f".line.s{n},.whisker.s{n}{{stroke:var(--s{n})}}circle.s{n}{{fill:var(--s{n})}}"
        f".legend .s{n}{{background:var(--s{n})}}\n"
        for n in range(8)
    ),
)
