"""What the data section may say, and the names by which users' own code joins.

column_errors  A column that is not there: told with the columns that are, and with the nearest name
columns        `columns` of a source: the format's column is one of the row's, or several joined by
               a template
data_config    What a user says about the data of a run: its sources, how they become tokens and
               are mixed
hooks          Hooks that a user's own code joins by name: `postprocess` for a whole source, and
               collators
naming         What sources are called: no name means two of them
rules          Fields of the data section that another one switches off: said, so used
               (`common/said`)
source_config  What a user says about one source: where its rows lie, and which of them are taken
"""
