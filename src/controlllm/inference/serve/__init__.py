"""The HTTP face of an engine: OpenAI's protocol, its limits, and who may ask.

```
connection -> guard (host, origin, key) -> routes -> prompts (template in a process of its own)
                                             |--> engine -> replies (JSON, or a stream of events)
```

app              The application: the guard, the routes, the page
running          The server as a process, and how it ends
connection       Clients that send or read nothing are dropped
guard            Who may ask; headers of every reply
routes           `/v1/models`, `/v1/chat/completions`, `/v1/completions`
browser          The page (`page/`), and what it must know of the server
comparing        `/controlllm/compare`: KL(base || tuned) of an answer, token by token
bodies           What clients may send
service          What all routes share; bodies read within bounds, clients that leave
prompts          From what clients send to tokens
templates        The process in which chat templates render
template_worker  What runs in that process
replies          Answers in OpenAI's form
errors           Errors in OpenAI's form
metrics          Counts and times for Prometheus
settings         How it listens, and its limits

Needs FastAPI and uvicorn (`pip install controlllm[serve]`); they are imported when first used.
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.inference.serve.app import make_app
    from controlllm.inference.serve.running import serve
    from controlllm.inference.serve.settings import ServeLimits, ServeSettings

__all__ = ["ServeLimits", "ServeSettings", "make_app", "serve"]

__getattr__, __dir__ = lazy_names(__name__)
