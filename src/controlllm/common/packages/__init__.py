"""Optional packages by one door each.

bitsandbytes  The optional package bitsandbytes
torchao       The optional package torchao: asked for in words, and imported without its own
"""
