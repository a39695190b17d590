"""What a run measures.

answers      What was written for the questions of a run, how long it may take, and its numbers
debugging    Finding out what is wrong with a run: `debug` of the run config, made real
flops        How many floating-point operations a training step takes, counted for what is really
             computed
generation   What a run writes for the prompts of its held-out sets, and what is measured of it
instruments  What a run measures of itself: the time of each phase, FLOPs, memory; made into metrics
metrics      The names of all metrics, written once, and how reports become metrics
model_parts  What the parts of a model compute, read from its modules and its config
peaks        The highest rate of a device: what MFU and HFU are a share of
progress     How far a run is: counters, history and the averages since the last record
retention    The forgetting meter inside a run, and the choice of the best checkpoint within a
             budget
timing       Where the time of a step goes: one clock that is always in one phase
"""
