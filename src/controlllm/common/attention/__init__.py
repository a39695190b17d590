"""Attention that keeps packed documents apart.

attention  Attention over packed documents as a loop, under names that transformers can be told
documents  Packed documents: what a model is told of them, and whether it keeps them apart
"""
