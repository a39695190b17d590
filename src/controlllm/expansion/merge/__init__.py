"""Back to the original architecture.

checks      What weights that serve all rows alike cannot be made of is refused
collapsing  `collapse` and `combine`: expanded models back into one, by interpolating weights
unrolling   `unroll`: a stack as the plain, deeper architecture of its base
low_rank    What collapsing changes in the base's weights, as matrices of low rank
"""
