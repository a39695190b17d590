"""The same parts on a sample, to be looked at.

mix      The mix, looked at before training: shares by the plan, and how full the batcher's items
         are
overlap  Rows that are in two sources: trained on and measured, or trained on under two names
report   What `controlllm data inspect` tells of a source: numbers, a line of bars, texts with
         their mask
source   One source, looked at before training: how its rows lie, and what becomes of a sample of
         them
"""
