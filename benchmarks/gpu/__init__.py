"""What is run on the first GPU at hand: `benchmarks/gpu/check.sh`, which says how.

check       the parts one after the other, each in its own process and time; the record
goals       what was hoped for, beside what was measured
device      a clock, a peak and a rate, on a GPU and on a CPU
shapes      models of useful sizes made in code, and text for them
marked      part `tests`: pytest's tests marked `gpu`
step        part `step`: the training step of each method
decoding    part `decode`: tokens per second beside the bytes that must be read
losses      part `loss`: the cross-entropy over a large vocabulary
resuming    part `resume`: a run that was stopped against one that was not
"""

import sys
from pathlib import Path

# The scripts beside this folder import one another by their bare names.
sys.path.append(str(Path(__file__).parents[1]))
