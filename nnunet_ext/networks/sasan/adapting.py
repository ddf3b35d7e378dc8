"""How SASAN's masks and axial attentions travel to another patch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nnunet_ext.networks.adapting.features import norms, strongest
from nnunet_ext.networks.adapting.grids import along, resampling
from nnunet_ext.networks.adapting.spectra import resize_spectrum
from nnunet_ext.networks.adapting.tied import Declaration, Geometry, Origin, Tied, sizes
from nnunet_ext.networks.sasan.axial_attention import AxialAttention, default_heads
from nnunet_ext.networks.sasan.fourier import FINE
from nnunet_ext.networks.sasan.low_band import fold_mask, unfold_mask


def resize_mask(stored: Tensor, size: Sequence[int], zoom: Sequence[float]) -> Tensor:
    """A stored mask (1, C, *P_l) for another size; see `spectra`.

    The stored order keeps M(-k) beside M(k) along the last axis, so the mask is brought to the FFT's order first. The
    low band has the image's amplitudes whatever the size, so the factors need no scale.
    """
    return fold_mask(resize_spectrum(unfold_mask(stored), range(2, stored.ndim), size, zoom))


def resize_attention(old: Mapping[str, Tensor], module: AxialAttention, heads: int) -> dict[str, Tensor]:
    """Weights of an axial attention whose embedding, an axis of E voxels, has another length E'.

    With R from `resampling`, tokens t of length E become t' = R t, and the result should become R y. The weights that
    read or write the axis are resampled:

        W'_qkv = W_qkv R(E' -> E);  W'_out = R(E -> E') W_out;  b'_out = R(E -> E') b_out

    The h heads of d = E / h features in between are no axis of the image. Heads and features are added without an
    effect (`features`), or the weakest are dropped. The attention divides scores by sqrt(d), so queries are multiplied
    by sqrt(d' / d). For E' >= E, h' >= h and d' >= d the result is exact for all tokens.
    """
    embedding, new = old["out.bias"].shape[0], module.out.out_features
    resized = along(resampling(new, embedding).T, old["qkv.weight"], 1)
    q, k, v = resized.unflatten(0, (3, heads, -1)).unbind(0)  # (h, d, E') each
    o = along(resampling(embedding, new), old["out.weight"], 0).T.unflatten(0, (heads, -1))
    kept = strongest(norms(v, 0) * norms(o, 0), module.heads)
    _, initial_k, initial_v = module.qkv.weight.detach().unflatten(0, (3, module.heads, -1)).unbind(0)
    new_q, new_k = _fitted(q[kept], k[kept], initial_k)
    new_o, new_v = _fitted(o[kept], v[kept], initial_v)
    new_q = new_q * (new_q.shape[1] / q.shape[1]) ** 0.5
    return {
        "qkv.weight": torch.stack((new_q, new_k, new_v)).flatten(0, 2),
        "out.weight": new_o.flatten(0, 1).T.contiguous(),
        "out.bias": along(resampling(embedding, new), old["out.bias"], 0),
    }


def _fitted(reading: Tensor, writing: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of two sides whose product per head counts, (h, d, E') each, for the heads and features of `initial`."""
    new_reading, new_writing = torch.zeros_like(initial), initial.clone()
    for head, (reads, writes) in enumerate(zip(reading, writing, strict=True)):
        kept = strongest(norms(reads, 0) * norms(writes, 0), initial.shape[1])
        new_reading[head, : len(kept)] = reads[kept]
        new_writing[head, : len(kept)] = writes[kept]
    return new_reading, new_writing


def _size_of_mask(module: FINE) -> Geometry:
    return tuple(module.mask.shape[2:])


def _adapt_mask(old: Mapping[str, Tensor], module: FINE, origin: Origin) -> dict[str, Tensor]:
    mask, size = old["mask"], module.mask.shape[2:]
    return {"mask": resize_mask(mask, size, origin.zoom_of(mask.shape[2:], size))}


def _heads(module: AxialAttention) -> Geometry:
    return module.out.out_features, module.heads


def _guess_heads(old: Mapping[str, Tensor], _: AxialAttention) -> Geometry:
    embedding = old["out.bias"].shape[0]
    return embedding, default_heads(embedding)


def _adapt_attention(old: Mapping[str, Tensor], module: AxialAttention, origin: Origin) -> dict[str, Tensor]:
    return resize_attention(old, module, heads=sizes(origin.geometry)[1])


TIED: Declaration = {
    FINE: Tied(
        ("mask",),
        _size_of_mask,
        lambda old, _: tuple(old["mask"].shape[2:]),
        _adapt_mask,
        "resampled in frequency",
        in_mm=True,
    ),
    AxialAttention: Tied(
        ("qkv.weight", "out.weight", "out.bias"),
        _heads,
        _guess_heads,
        _adapt_attention,
        "resampled along the axis (DCT)",
    ),
}
"""The parameters of SASAN that are tied to the patch."""
