"""From a config to things that stand ready.

activations       What of the activations is kept for backward, and compiled blocks
base              Stage 1: the base model on its device, and the data that it will learn from
benchmarks        The suite of benchmarks that a run asks while it trains
copies            Frozen copies of models, which have weights in common with a model that trains
                  where they can
generation        The questions that a run lets its model answer, on its held-out sets
held_out          The held-out sets of a run, and of the runs that it goes on from: what is measured
methods           How a base model becomes one that trains, and what computes its base afterwards
model             The base model and its tokenizer, loaded and set up for training
own_text          What the base of a run writes by itself before training, to be measured
quantised_linear  Linear layers whose weight is held in 8 or 4 bits: packed by torchao, multiplied
                  by us
quantize          A frozen base in 8 or 4 bits: less memory for what does not train
ready             Stage 4: loss, optimizer, schedule and meter of the model: all that a loop needs
rehearsal         Self-rehearsal: before training, the base writes down what it knows
sharding          Stage 3: the model in parts on its processes, with all of its weights
sizing            How long a run is: steps of a pass over the data, of the whole run, and those the
                  data gives
stages            How a run becomes ready: four stages, each a frozen result that adds to the one
                  before
ways              What a run does to go on from an earlier one: one file for each way of
                  `config.ways`
"""
