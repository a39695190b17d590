"""Optional packages by one door each.

bitsandbytes  The optional package bitsandbytes
quantizers    The ways to hold a frozen base in few bits, each with all that is known of it
torchao       The optional package torchao: asked for in words, and imported without its own
"""
