"""Parameters of MT-UNet that are trained, and those that never are."""

FROZEN = ("axial.bias", "axial.out.weight", "axial.out.bias")


def learning(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
