"""What became of each task in a sequence of runs, each of which went on from the one before.

documents  The losses of a model on a set, document by document, and how far one rose to another
matrix     R: each stage on each task; ACC, BWT, FWT, F, intransigence
measuring  Every stage on every task, one model at a time beside the base
tables     The matrix and its numbers as tables, and as JSON
picture    The matrix as a picture
"""
