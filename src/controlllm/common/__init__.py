"""Floor 0: what every room uses, and what uses none of them.

errors         The exceptions that a user may meet
registry       Names to things, with the nearest name for a wrong one
quiet          Lines of other packages that concern nobody here: left out around our own imports
lazy           Public faces of packages whose modules are imported when they are first used
losses         The only place that masks or reduces
forwarding     A module in the place of another one: attributes that it lacks are the other's
tensors        Tensors that lie in parts on several processes
adapters       Adapters that PEFT has put into a model, known by their structure
context        How many positions a model knows
distributed    Several processes agree: gather, reduce, one first
interrupts     Ctrl-C in the first seconds, and later
text           Text for people: readable, without secrets, with progress
settings       Names and bounds of settings, and those that would not be read
facts          The facts of a setting stand at its field, and all checks are derived from them
storage        Files here and elsewhere: whole or not at all, and never those of others
packages       Optional packages, by one door each
attention      Attention that keeps packed documents apart
"""
