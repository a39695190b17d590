"""What every verb uses: words to options, the terminal, several processes.

benchmarks    Benchmarks of a verb: suites and single tasks, found and loaded before any model is
eval_options  What `controlllm eval` may be told
parsing       From words and YAML to one typed options object
reference     The base that a model is compared with: its own, or one that is named beside it
sets          The held-out sets of `eval` and `calibrate`: those given, else the run's own
stage_sets    Those of the stages before a run, for `calibrate`
terminal      What the terminal shows
words         The words of a command, by the type hints of its options
"""
