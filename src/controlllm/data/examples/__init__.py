"""A document becomes token ids and labels.

encode       Rows -> examples of at most `max_length` tokens, every row accounted for
render       Documents -> texts by the chat template, and which of their characters are targets
row_filters  Which rows of a source take part: a split by hash, wanted values, filters, a sample
skeleton     Conversations of the same roles differ only in their contents
spans        Which characters of a rendered conversation belong to which turn
special      Special tokens by name: a template's are tokens
templates    Chat templates: the tokenizer's own, one of ours by name, a file, or a text
tokens       Rendered texts -> token ids, and which of them are targets; many texts at once
"""
