import numpy as np
import pytest
import torch

from nnunet_ext.blocks.real_inverse import real_inverse


@pytest.mark.parametrize("norm", ["ortho", "backward"])
@pytest.mark.parametrize(("size", "axes"), [((5, 4, 7), (1, 2, 3)), ((6, 8), (1, 2)), ((9,), (1,)), ((3, 1), (1, 2))])
def test_it_is_numpys_of_any_spectrum_with_its_gradient(size, axes, norm, assert_close):
    """Equal to NumPy also for spectra that do not belong to real maps: here random numbers."""
    half = (*size[:-1], size[-1] // 2 + 1)
    spectrum = torch.randn(2, *half, 3, dtype=torch.complex128, requires_grad=True)
    found = real_inverse(spectrum, axes, size[-1], norm)
    expected = np.fft.irfftn(spectrum.detach().numpy(), s=size, axes=axes, norm=norm)
    assert_close(found, torch.from_numpy(expected), 1e-12)
    assert torch.autograd.gradcheck(lambda x: real_inverse(x, axes, size[-1], norm), spectrum)
