"""How much was learned and forgotten, read off losses.

losses      What loss does a model have on a set?
reference   What does its base say to the same input?
own         Which sets did the base write itself?
retention   How far did it move: forgetting, gain, KL(base || trained) per token
dial        Which alpha learns most within a budget of forgetting?
alphas      Which settings and budgets can be asked for?
calibrate   The dial, set where a budget of forgetting allows
blending    The dials of several sidecars, found together within such a budget
averaging   The same curve for full tuning: weights averaged with the base
expanded    Which alpha did an expanded model use, token by token?
tables      Tables of these
plot        Pictures of these
"""
