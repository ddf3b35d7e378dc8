"""How parameters that are tied to the patch travel to another patch; see `nnunet_ext.weights.adapt_weights`.

Positions are relative to the patch, and frequencies are in cycles per mm. What a rule promises is a statement about
maps that both grids can represent: they give the same result through the old layer and through the adapted one.
"""
