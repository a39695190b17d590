"""Which example comes next, on which rank, and the state to resume it.

batchers      Step 7: draws -> items: a packed slot, or the rows of a padded batch
collate       Step 7: examples -> the tensors of a batch, padded or packed
evaluation    The fixed batches of a held-out source: in order, each target exactly once
lane          A lane: the whole pipeline in miniature, independent of all other lanes (decision
              0003)
mixing        Step 6: several streams -> one sequence of draws in which each source holds its share
open_source   Steps 1 to 4 put together: a source config -> the feed that streams draw from
packed_store  Step 7 done beforehand (`packing_strategy: fixed`): a store of documents -> a store
              of slots
packing       Step 7a: which waiting rows go together into a slot
plugins       Users' own formats, sources, filters, hooks and collators: found by entry point or by
              file
shuffle       In which order the blocks of a source come, epoch after epoch, in constant memory
stream        Step 5: one source, as one lane draws from it: shuffled, endless, and resumable
train_loader  Step 8: the training loader
workers       Who runs the lanes of a rank: this process, or worker processes that read ahead
"""
