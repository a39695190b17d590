"""What a model writes by itself: the one sample of what it knew that is always there.

settings     How much own text is measured, and when
plan         All that decides what a model writes
writing      A model writes by a plan
chat         The same behind a chat template: a user's turn, then the answer
cache        What a model wrote, from the cache if it is there: own text, and what is rehearsed
sets         Own text as held-out sets
certificate  How far a model moved from its base on it, with a bound
"""

from typing import TYPE_CHECKING

from controlllm.common.lazy import lazy_names

if TYPE_CHECKING:
    from controlllm.evaluate.forgetting.own import OWN_TEXT, is_own_text
    from controlllm.evaluate.own_text.cache import Written, read_or_write
    from controlllm.evaluate.own_text.certificate import Certificate, certificates, certify
    from controlllm.evaluate.own_text.chat import Asked, chat_plan
    from controlllm.evaluate.own_text.plan import (
        ChatPlan,
        SamplingPlan,
        block_seed,
        read_prompts,
    )
    from controlllm.evaluate.own_text.sets import write_own_text
    from controlllm.evaluate.own_text.settings import OWN_TEXT_CHAT, OwnTextConfig
    from controlllm.evaluate.own_text.writing import Writer, as_it_is, sample_sequences

__all__ = [
    "OWN_TEXT",
    "OWN_TEXT_CHAT",
    "Asked",
    "Certificate",
    "ChatPlan",
    "OwnTextConfig",
    "SamplingPlan",
    "Writer",
    "Written",
    "as_it_is",
    "block_seed",
    "certificates",
    "certify",
    "chat_plan",
    "is_own_text",
    "read_or_write",
    "read_prompts",
    "sample_sequences",
    "write_own_text",
]

__getattr__, __dir__ = lazy_names(__name__)
