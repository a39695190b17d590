"""Issue table 3: no wrong number, and nothing that is said is ignored."""


# ---- bos: pieces of a long text begin with BOS ----


# ---- padding: the padding token's id changes nothing ----


# ---- gates: the dial multiplies a gate ----


# ---- config: expand copies the config ----


# ---- fields: fields that a source, a structure, packing or a verb does not read ----


# ---- preset: a preset applies, however the run config is made ----


# ---- argv: the parsed model decides whose settings are taken ----


# ---- calibrate: the measured mean alpha is written, with the card ----


# ---- compare: nan is the worst forgetting ----


# ---- resume: what cannot change the result may change ----


# ---- retain: the size of an evaluation is said and bounded ----


# ---- lists: lists replace, and are printed ----


# ---- order: the command line counts more than a file, and nothing is given twice ----


# ---- weights: missing tensors, weights that are not numbers, checksums ----


# ---- said: what is said is used ----


# ---- swamped: a divergence that dwarfs the loss is told ----


# ---- overlap: rows that are trained on and measured ----


# ---- special: text is text, also where it looks like a control token ----


# ---- edited: a sidecar's record is checked as a whole ----


# ---- tracebacks: a sentence, before anything slow ----


# ---- messages: answers to wrong words are short and come first ----


# ---- labels: what a number is the number of ----


# ---- columns: two columns joined, and numbers as text ----


# ---- progress: long work shows a line ----


# ---- targets: rows without targets are told before the first step ----
