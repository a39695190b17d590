"""What every verb uses: words to options, the terminal, several processes.

parsing    From words and YAML to one typed options object
processes  Several processes of one run on one terminal: one speaks
sets       The held-out sets of `eval` and `calibrate`: those given, else those that the run
           declared
terminal   What the terminal shows: warnings and log lines, one line each, with nothing that steers
           it
words      The words of a command, by the type hints of its options: nested values, nothing said
           twice
"""
