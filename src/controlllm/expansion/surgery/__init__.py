"""Putting the method into any decoder, turning its dial, and taking it out.

anatomy    Where the parts of a decoder-only model are, found by structure: no table of
           architectures
dial       The dial: reading and setting alpha, and switching the expansion off
install    Putting the expanded parts into a model, and taking them out again
quantised  Bases that come quantised: which layers are, what they compute with, and copies that
           train
"""
