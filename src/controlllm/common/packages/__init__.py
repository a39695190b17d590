"""Optional packages by one door each.

bitsandbytes  The optional package bitsandbytes: linear layers in 8 or 4 bits, made, told apart and
              read
torchao       The optional package torchao: asked for in words, and imported without its own
"""
