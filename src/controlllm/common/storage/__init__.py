"""Files here and elsewhere: whole or not at all, and never those of others.

checksums     Which files were written together: `checksums.json` beside an exported model
deadline      Calls that may hang: each runs in a thread of its own, with a deadline
disk          What the disk does for sure: names that outlive a power cut, and two names that swap
              at once
files         Atomic writing: a file or a folder under its final name is always whole
guarded       An fsspec file system whose every wait ends, that survives a fork, and that can be
              pickled
held          Files that one process holds: the kernel gives them back when it ends, however it ends
holder        Who holds something: a process, told so that another one can say it and look whether
              it lives
http_client   The HTTP client of `https://` addresses: what the user says to a server stays with
              that server
lock          One process does the work, the others wait for it: locks and failures on a shared disk
occupied      One writer in a folder at a time, for as long as it lives
private       Folders that only this user may write, and files in them that are no links to
              elsewhere
reach         How far a server may send its clients on
remote        Files elsewhere: one way to open `hdfs://`, `webhdfs://`, `s3://`, `gs://`,
              `https://` and more
schema        One check of nested values against types: settings of a run, and JSON that anybody
              wrote
tensor_files  Safetensors files that anybody may have written: their headers, tensors, and numbers
webhdfs       The WebHDFS client: fsspec's, with time-outs, checked answers, and uploads in one
              stream
workplace     A folder beside a target, in which the target is made whole before it takes its name
"""
