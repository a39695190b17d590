"""Floor 3: use a model.

chat      A conversation with a model, the dial at hand
compare   Base and tuned model on one text, token by token
generate  Text from a model, piece by piece as it comes
"""

from controlllm.inference.chat import Chat
from controlllm.inference.compare import TokenChange, token_changes
from controlllm.inference.generate import GenerationSettings, Generator

__all__ = ["Chat", "GenerationSettings", "Generator", "TokenChange", "token_changes"]
