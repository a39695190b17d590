"""Floor 3: use a model.

chat      A conversation with a model, the dial at hand
generate  Text from a model, piece by piece as it comes
"""

from controlllm.inference.chat import Chat
from controlllm.inference.generate import GenerationSettings, Generator

__all__ = ["Chat", "GenerationSettings", "Generator"]
