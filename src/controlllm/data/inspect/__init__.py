"""The same parts on a sample, to be looked at.

mix      The mix, looked at before training: shares by the plan
overlap  Rows that are in two sources: trained on and measured, or trained on under two names
report   What `controlllm data inspect` tells of a source
source   One source, looked at before training: how its rows lie
"""
