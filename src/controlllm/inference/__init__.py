"""Floor 3: use a model.

serve         The HTTP face: OpenAI's protocol, its limits, who may ask
engine        One owner of the model, jobs in a queue, caches by (alpha, sidecar, tokens)
chat          A conversation with a model, the dial at hand
compare       Base and tuned model on one text, token by token
side_by_side  One question to base and tuned model in the terminal
settings      How text is sampled
decoding      Tokens as text, as they come
generate      Text from a model, piece by piece as it comes
vllm_server   vLLM's own server on a saved folder
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.inference.chat import Chat
    from controlllm.inference.compare import TokenChange, token_changes
    from controlllm.inference.generate import Generator
    from controlllm.inference.settings import GenerationSettings

__all__ = ["Chat", "GenerationSettings", "Generator", "TokenChange", "token_changes"]

__getattr__, __dir__ = lazy_names(__name__)
