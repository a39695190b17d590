"""Which example comes next, on which rank, and the state to resume it.

batchers      Draws -> items: a packed slot, or the rows of a padded batch
collate       Examples -> the tensors of a batch, padded or packed
draws         What a stream gives out, and the state that it goes on from
evaluation    The fixed batches of a held-out source: in order, each target exactly once
lane          All sources, mixed and batched, independent of all other lanes
mixing        Several streams -> one sequence of draws in which each source holds its share
open_source   Reading, formats and tokens put together: a source config -> the feed of streams
packing       Which waiting rows go together into a slot
plugins       Users' own formats, sources, filters, hooks and collators
questions     A held-out set as prompts to answer, and their answers
shuffle       In which order the chunks of a source come, epoch after epoch, in constant memory
stream        One source, as one lane draws from it: shuffled, endless, and resumable
train_loader  The training loader: the lanes of a rank, collated, and their state
workers       Who runs the lanes of a rank: this process, or worker processes that read ahead
"""
