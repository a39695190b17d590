"""Files here and elsewhere: whole or not at all, and never those of others.

checksums       Which files were written together: `checksums.json` beside an exported model
deadline        Calls that may hang: each runs in a thread of its own, with a deadline
files           Atomic writing: a file or a folder under its final name is always whole
guarded         An fsspec file system whose every wait ends, that survives a fork
held            Who holds a file or a folder
http_client     The HTTP client of `https://` addresses
lock            One process at a time: one makes what the others wait for, one writes into a folder
reach           How far a server may send its clients on
remote          Files elsewhere
schema          One check of nested values against types: settings of a run
tensor_files    Tensors of safetensors files that anybody may have written, and their check
tensor_headers  Headers of safetensors files that anybody may have written, read without torch
webhdfs         The WebHDFS client: fsspec's, with time-outs, checked answers
workplace       A folder beside a target, in which the target is made whole before it takes its name
"""
