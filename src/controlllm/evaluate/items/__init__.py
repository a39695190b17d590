"""Every question put to every model, kept item by item.

identity    Whose answers are they
store       Answers of models, kept for every later evaluation
asking      Requests in chunks that are always cut alike, dealt over processes
models      Models that answer: of transformers in this process, or vLLM's
tasks       lm-eval's tasks, made to ask every model the same
loading     Suites and single tasks with their questions
fields      Values of a JSON file as a dataclass, checked
records     What was asked, of whom, and what came back: an evaluation as it lies in a folder
metrics     Which metrics of lm-eval's tasks are read as what
reading     Four readings of each item, out of one run
grading     Items whose answers are programs
running     A suite on a model, its base and its dial
comparison  Two models on the same items: readings, intervals, one word for each benchmark
tables      An evaluation for a terminal
"""
