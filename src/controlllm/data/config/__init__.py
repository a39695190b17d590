"""What the data section may say, and the names by which users' own code joins.

columns        `columns` of a source
data_config    What a user says about the data of a run, and what of it goes together
hooks          Hooks that a user's own code joins by name: `postprocess` for a whole source
source_config  What a user says about one source: where its rows lie, and which of them are taken
"""
