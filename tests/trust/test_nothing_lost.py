"""Issue table 2: no run, checkpoint or upload is lost to another process."""


# ---- 1: two runs in one folder ----


# ---- 2: containers that share a host name ----


# ---- 3: cleaning between two renames ----


# ---- 4: an upload killed between remove and move ----


# ---- 5: two loads of one remote run ----


# ---- 6: atomic files sync their folder ----
