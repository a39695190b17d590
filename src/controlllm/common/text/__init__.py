"""Text for people: readable, without secrets, with progress; and YAML that runs no code.

names     The names that a stranger's folder may use
progress  How far long work is: one line that is rewritten on a terminal, sparse lines in a log
readable  Text of strangers on a terminal
secrets   What must not be shown: tokens, passwords, keys; told by the names they stand under
tables    Tables for people: the same text reads well in a terminal and renders as Markdown
yamls     YAML that somebody else may have written: read within bounds, and nothing in it said twice
"""
