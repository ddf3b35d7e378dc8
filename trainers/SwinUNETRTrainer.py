from nnunet_ext.training import AdamWTrainer, MONAITrainer


class SwinUNETRTrainer(AdamWTrainer, MONAITrainer):
    """Swin UNETR, Hatamizadeh et al., BrainLes 2021, by MONAI's `SwinUNETR` with the paper's 48 features.

    Training: the paper's AdamW with 8e-4, linear warm-up and cosine; the paper names no weight decay.
    """

    network_class = "monai.networks.nets.SwinUNETR"
    network_settings = {"feature_size": 48}
    patch_multiple = 32
    learning_rate = 8e-4
