"""What is said of a run to people: a verdict by rules, and a page with all that speaks for it.

runs      What a run folder holds that a judge reads
gate      The rules: read from YAML and checked
measures  The numbers that rules bound
ruling    Their verdicts on the items of an evaluation
"""
