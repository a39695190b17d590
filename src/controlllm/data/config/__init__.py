"""What the data section may say, and the names by which users' own code joins.

columns        `columns` of a source
data_config    What a user says about the data of a run, and what of it goes together
hooks          What a user's own code joins by name: hooks over a whole source, and collators
source_config  What a user says about one source: where its rows lie, and which of them are taken
"""
