"""Which base it was: fingerprints, and what may be written down of it.

base_files   The safetensors files that a model was loaded from, read one tensor at a time
base_record  Which base a model trains on, noted while that base is still itself
fingerprint  Which base was it? A fingerprint of a model's frozen weights
records      What our JSON files and those of transformers may say: the schemas, with bounds
"""
