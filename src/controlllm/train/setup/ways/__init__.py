"""What a run does to go on from an earlier one: one file for each way of `config.ways`.

branch    A new sidecar beside the earlier ones, which are frozen at their dials
contract  What a way does, and how one is registered
earlier   The run that is gone on from: found, read, and what need not be said again
expansion What its copies are: what it says, beside what is recorded
fold      New copies on the stage before, collapsed
going     What each way does, by its name
loaded    The models of earlier stages, as they were
one       The same copies go on
"""
