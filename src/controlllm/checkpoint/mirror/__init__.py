"""Runs on remote storage: written there, and copied here.

copies  Copies on this machine of what is loaded from elsewhere: one folder per address and version
fetch   Bringing checkpoints, and what lies beside them, from elsewhere to the local disk
remote  A run folder elsewhere (HDFS, S3, ...), laid out as the one on disk is
upload  Copying checkpoints to a run folder elsewhere
"""
