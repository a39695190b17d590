"""Putting the method into any decoder, turning its dial, and taking it out.

anatomy    Where the parts of a decoder-only model are, found by structure: no table of
           architectures
checks     What cannot be expanded is refused before anything is changed
dial       The dial: reading and setting alpha, and switching the expansion off
install    Putting the expanded parts into a model, and taking them out again
int8_copies  Copies in 8 bits, for inference
parts      The expanded parts of a model, made of its own; the model is not changed
quantised  Bases that come quantised: which layers are, what they compute with, and copies that
           train
recording  What both branches of every expanded part compute, kept while somebody looks
sidecars   Putting the parts of several sidecars into one base, which is held once
twins      What trained copies began as: the frozen weights beside them
"""
