"""Issue table 1: what a stranger made (a folder, a YAML file, a server) can only be read."""


# ---- 1: best.json and manifests name nothing outside the run's own folder ----


# ---- 2: no file makes a parser import a module ----


# ---- 3: addresses, options and cache folders of somebody's run folder need a flag ----


# ---- 4: credentials go to no host that the user did not type ----


# ---- 5: no code is fetched, and none runs without consent on the command line ----


# ---- 6: caches hold no pickles, and planted links are not followed ----


# ---- 7: adapters of the Hub: safetensors only, the recorded fingerprint is checked ----


# ---- 8: regexes, alias bombs, huge headers and decompression bombs are bounded ----


# ---- 9: no escape sequence reaches the terminal, no markup the model card ----


# ---- 10: piped prompts are prompts ----


# ---- 11: a manifest lists exactly what is there ----


# ---- 12: redirects, secrets and rotated tokens ----


# ---- 13: malformed files are one sentence that names file and field ----
