"""A whole source tokenised once, under a key of all that it depends on.

cache_key     What examples depend on, as short hashes: two equal keys mean equal examples
code_key      The code that examples depend on, as a short hash: a cache made by other code is
              never used
postprocess   The whole-source hook: rows -> rows, by one process or shared by all ranks
prepare       Whole-source passes and their cache: rows -> a `TokenStore` on disk, addressed by its
              content
rowcodec      Rows of plain values as lines of JSON and back, the same as before; reading them runs
              no code
store         Examples that are tokens already: what a model wrote for rehearsal, or a prepared
              source
whole_source  What a source chooses once all its rows are known: no duplicates, so many rows, easy
              ones first
"""
