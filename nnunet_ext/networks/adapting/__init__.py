"""How parameters that are tied to the patch travel to another patch; see `nnunet_ext.weights.adapt_weights`.

All rules share one assumption: the patch of the new plan shows what that of the old plan showed. Positions are relative
to the patch, and frequencies are in cycles per patch. What a rule promises is then a statement about functions on the
patch: a map that both grids can represent gives the same result through the old layer and through the adapted one.
"""
