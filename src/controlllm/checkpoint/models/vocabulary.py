"""Whether a tokenizer's ids are rows of a model's embedding."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from controlllm.common.errors import CheckpointError

__all__ = ["require_rows"]


def require_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with tokens that the model has no row for.

    Tokens that were added and that no text becomes pass (a placeholder of images, say): those of no
    chat template that are not BOS, EOS, PAD or the like.

    Raises:
        CheckpointError: with the token, its id and the model's rows.
    """
    rows = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    if rows is None:
        return
    beyond = {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= rows}
    named = {str(value) for value in tokenizer.special_tokens_map.values()}
    added, template = tokenizer.get_added_vocab() if beyond else {}, _text(tokenizer.chat_template)
    for token, id_ in sorted(beyond.items(), key=lambda item: item[1]):
        if token not in added or token in template or token in named:
            name = model.config.name_or_path or type(model).__name__
            raise CheckpointError(
                f"the tokenizer's token {token!r} has id {id_}, but the embedding of {name} has "
                f"rows 0 to {rows - 1} only: use the tokenizer that the model was made with "
                "(`tokenizer`), or resize the model first (model.resize_token_embeddings)."
            )


def _text(template: Any) -> str:
    """A chat template, or several by name, as one text."""
    return str(template or "")
