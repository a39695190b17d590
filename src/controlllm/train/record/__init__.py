"""Logs, checkpoints, and when to stop.

folder   The run folder: who may write into it, and what a run finds there
keeper   The book-keeping of a run, the same under every back end
loggers  Where metrics go: console, JSON lines, TensorBoard, W&B
signals  A request to stop, by a signal: the step is finished and saved, then the run ends
uploads  Copies of checkpoints elsewhere are made while training goes on
"""
