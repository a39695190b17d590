"""What every verb uses: words to options, the terminal, several processes.

parsing   From words and YAML to one typed options object
sets      The held-out sets of `eval` and `calibrate`: those given, else those that the run declared
terminal  What the terminal shows
words     The words of a command, by the type hints of its options
"""
