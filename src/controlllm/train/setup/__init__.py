"""From a config to things that stand ready.

activations  What of the activations is kept for backward, and compiled blocks
bench        The workbench: everything a back end needs, made from a run config
methods      How a base model becomes one that trains, and who answers for its base afterwards
model        The base model and its tokenizer, loaded and set up for training
quantize     A frozen base in 8 or 4 bits: less memory for what does not train
rehearsal    Self-rehearsal: before training, the base writes down what it knows
sizing       How long a run is: steps of a pass over the data, of the whole run, and those the data
             gives
"""
