"""Floor 3: use a model: streaming generation, and a conversation with the dial at hand."""

from controlllm.inference.chat import Chat
from controlllm.inference.generate import GenerationSettings, Generator

__all__ = ["Chat", "GenerationSettings", "Generator"]
