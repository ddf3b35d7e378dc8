from nnunet_ext.training import FAFNetLabelTrainer


class FAFNetResNet101Trainer(FAFNetLabelTrainer):
    """FAF-Net on the paper's encoder, a ResNet-101 that starts from torchvision's ImageNet weights."""

    network_settings = {"encoder": "resnet101"}
    encoder_weights = "imagenet"
