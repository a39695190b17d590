"""A whole source tokenised once, under a key of all that it depends on.

cache_key     What examples depend on, as short hashes: two equal keys mean equal examples
prepare       Whole-source passes and their cache
store         Examples that are tokens already
whole_source  What a source chooses once all its rows are known
"""
