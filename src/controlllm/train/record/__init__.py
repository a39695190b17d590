"""Logs, checkpoints, and when to stop.

checkpoints      The hook that saves: checkpoints, which of them is the best, and their copies
                 elsewhere
descriptions     Measurements of held-out sets as a line for people
evaluation       The hook that measures: learning and forgetting on the held-out sets
evaluation_time  What evaluations take of a run's time: a warning where that is much
folder           The run folder: who may write into it, and what a run finds there
benchmarks       The hook that asks a suite of benchmarks
generation       The hook that lets the model write: texts for held-out prompts, and their numbers
hooks            Callbacks: what else happens while a run trains, in both back ends
loggers          Where metrics go: console, JSON lines, TensorBoard, W&B
metric_log       The hook that logs: each record goes to the history and to every logger
recorder         The records of a run, the same under every back end
signals          A request to stop, by a signal: the step is finished and saved, then the run ends
uploads          Copies of checkpoints elsewhere are made while training goes on
"""
