"""What the data section may say, and the names by which users' own code joins.

column_errors  A column that is not there: told with the columns that are, and with the nearest name
columns        `columns` of a source: the format's column is one of the row's, or several joined by
               a template
data_config    What a user says about data: where rows lie, how they become tokens, how sources are
               mixed
hooks          Hooks that a user's own code joins by name: `postprocess` for a whole source, and
               collators
naming         What sources are called: names come from paths, and none means two sources
rules          Fields of the data section that another one switches off: said, so used
               (`common/said`)
"""
