"""One owner of the model: a thread of its own, and work in a queue. Nothing here knows HTTP.

```
Request --> waiting --> running (turns) --> pieces of text
             Job ---->     |
                     Desk: model, dial, caches by (voice, tokens)
```

protocol  What a server knows of an engine: voices, requests, pieces; `Engine`
table     The names that clients may use, and whom they mean
opening   From what a user names to an engine
settings  How much an engine takes on
local     The engine on this machine: the thread that owns the model
work      What waits for the model
writing   One text on its way: read the prompt, then write token by token
dials     The model as a voice
caches    KV caches from one turn to the next
sampling  From logits to a token
text      From tokens to text, and where it stops
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.inference.engine.local import LocalEngine
    from controlllm.inference.engine.protocol import (
        BusyError,
        ClosingError,
        Engine,
        Health,
        Held,
        Piece,
        Request,
        Sampling,
        TimeUpError,
        Token,
        Usage,
        Voice,
    )
    from controlllm.inference.engine.settings import EngineSettings
    from controlllm.inference.engine.table import BASE, Choice, ModelTable, UnknownModelError

__all__ = [
    "BASE",
    "BusyError",
    "Choice",
    "ClosingError",
    "Engine",
    "EngineSettings",
    "Health",
    "Held",
    "LocalEngine",
    "ModelTable",
    "Piece",
    "Request",
    "Sampling",
    "TimeUpError",
    "Token",
    "UnknownModelError",
    "Usage",
    "Voice",
]

__getattr__, __dir__ = lazy_names(__name__)
