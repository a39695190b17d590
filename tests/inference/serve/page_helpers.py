"""A real server over a real socket for a browser: small models whose words are known."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import uvicorn
from tokenizers import AddedToken

from controlllm import ExpansionConfig, expand
from controlllm.inference.engine import LocalEngine
from controlllm.inference.serve import ServeSettings, make_app

HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


def speaking(pico_llama: Callable, pico_tokenizer: Any, base: str, tuned: str) -> tuple[Any, Any]:
    """An expanded model whose base always writes one text as a token, and its trained ends another.

    The block adds nothing and all embeddings are (1, 1, ...), so a logit is the sum of a row of
    the head: ln 50 for the one token, 0 for all others.
    """
    tokenizer = deepcopy(pico_tokenizer)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in (base, tuned)])
    ids = [tokenizer.convert_tokens_to_ids(text) for text in (base, tuned)]
    model = pico_llama(
        num_hidden_layers=1,
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    )
    layer, loud = model.model.layers[0], torch.tensor(50.0).log() / 32
    with torch.no_grad():
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj, model.lm_head):
            part.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight[ids[0]] = loud
    model = expand(model, ExpansionConfig(num_blocks=1, expand_ends=True))
    with torch.no_grad():
        model.lm_head.expanded.weight[ids[0]] = 0.0
        model.lm_head.expanded.weight[ids[1]] = loud
    model.set_alpha(1.0)
    return model.eval(), tokenizer


@contextmanager
def served(model: Any, tokenizer: Any, **settings: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    engine = LocalEngine(model, tokenizer, name="maths")
    app = make_app(engine, ServeSettings(port=0, **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
