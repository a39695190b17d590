"""What is said of a run to people: a verdict by rules, and a page with all that speaks for it.

runs        What a run folder holds that a judge reads
curve       The dial's curve, as `calibrate` has written it
gate        The rules: read from YAML and checked
measures    The numbers that rules bound
ruling      Their verdicts on the items of an evaluation
models      All models of some runs beside their base, with corrected tests
html        The builder of the page: what is not markup of ours is text
svg         Axes, lines, points with intervals, bars
style       The look of the page, and its Content-Security-Policy
words       Numbers and outcomes as people read them
tables      Capabilities, models side by side, a gate's rules
own_text    How far a run moved from its base on what that wrote, with the bound
pictures    Learned against lost, the dial, losses in time
examples    Items that flipped, with both answers; texts from training
provenance  Data, models, versions, commands
report      The page, put together
"""
