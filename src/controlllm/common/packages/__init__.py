"""Optional packages that hold weights in few bits.

bitsandbytes  The optional package bitsandbytes
quantizers    The ways to hold a frozen base in few bits, each with all that is known of it
"""
