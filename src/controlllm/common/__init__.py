"""Floor 0: what every room uses and what uses none of them.

| module | what it holds |
|---|---|
| `errors` | the exceptions a user may meet |
| `registry` | names to things, with did-you-mean |
| `losses` | the only place that masks or reduces |
| `attention` | packed documents on CPU, as an attention implementation |
| `files` | atomic writing |
"""
