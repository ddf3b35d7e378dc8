"""nnU-Net's checkpoints: reading them with clear errors, and comparing them with what loads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnunet_ext.utils.messages import some_of
from nnunet_ext.utils.safe_load import NotPlainError, load_plain

FINAL_CHECKPOINT = "checkpoint_final.pth"
LATEST_CHECKPOINT = "checkpoint_latest.pth"
CHECKPOINTS = (FINAL_CHECKPOINT, LATEST_CHECKPOINT, "checkpoint_best.pth")
"""Names of checkpoints, in the order in which `nnUNetv2_train --c` looks for them."""

_NEEDED = ("network_weights", "optimizer_state", "current_epoch", "init_args", "trainer_name", "logging")
_SHOWN = 4
_TRUST = (
    "If you trust its author, load it with nnU-Net's own commands, which do execute it; or, if it is your own, allow "
    "these classes by torch.serialization.add_safe_globals in the trainer's module"
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of nnU-Net; its tensors stay in the file until they are used.

    Unlike nnU-Net's own reading, it never executes code that a file may contain, so that a stranger's model is safe.

    Raises:
        FileNotFoundError: if there is no such file.
        NotPlainError: if it holds Python objects that could execute code; names them. nnU-Net may then read it, but
            nothing of this package does.
        ValueError: for a file that is cut off, empty, not written by torch, or from another program; it names the file.
    """
    path = Path(path)
    with path.open("rb"):  # the operating system's own words, where it cannot be opened
        pass
    try:
        content = load_plain(path, mmap=True)
    except NotPlainError as error:
        raise NotPlainError(path, error.objects, _TRUST) from error
    # The type of torch's error depends on which bytes are wrong.
    except Exception as error:
        state = "is empty" if path.stat().st_size == 0 else "cannot be read: it is cut off, or was not written by torch"
        raise ValueError(
            f"the checkpoint {path} {state} ({_first_line(error)}). Move it away: nnU-Net then takes the next of "
            f"{', '.join(name.removesuffix('.pth') for name in CHECKPOINTS)}"
        ) from error
    missing = [key for key in _NEEDED if not isinstance(content, Mapping) or key not in content]
    if missing:
        holds = ", ".join(map(str, list(content)[:_SHOWN])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{path} is not a checkpoint of nnU-Net: it has no {', '.join(missing)}; it holds {holds or 'nothing'}. "
            "Weights of another program: `nnunet_ext import-weights`, then nnUNetv2_train ... -pretrained_weights"
        )
    return dict(content)


def misfits(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Parameters of a network that a state dict lacks or has in another shape, one text per parameter.

    Additional entries are left to torch to refuse: they may be heads that are dropped on loading.
    """
    found = []
    for key, own in network.state_dict().items():
        if key not in weights:
            found.append(f"{key} is missing")
        elif weights[key].shape != own.shape:
            found.append(f"{key} is {tuple(weights[key].shape)} instead of {tuple(own.shape)}")
    return found


def refuse_misfits(network: nn.Module, weights: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Hook before loading, also in nnU-Net's prediction, whose error says what the network was built for.

    Raises:
        ValueError: for weights of another network, patch size or number of classes; the message has both shapes.
    """
    own = {key.removeprefix(prefix): value for key, value in weights.items()} if prefix else weights
    found = misfits(network, own)
    if found:
        patch = getattr(network, "patch_size", None)
        built = f" for patch size {tuple(patch)}" if patch is not None else ""
        raise ValueError(
            f"these weights do not belong to this plan: {type(network).__name__} was built{built}, but in the "
            f"checkpoint {some_of(found, _SHOWN)}. Other patch size, labels, features or trainer? plans.json and "
            "dataset.json of the model's folder must be those it was trained with"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Differences between two trainings that affect the network's shape, one text with both values per difference.

    Args:
        theirs: `init_args` of a checkpoint: plans, configuration, dataset_json.
        ours: The same of the training or model that loads it.
    """
    try:
        before = _facts(theirs)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return ["the checkpoint's own plan cannot be read"]
    return [
        f"{name} {before[name]} in the checkpoint, {value} here"
        for name, value in _facts(ours).items()
        if before[name] != value
    ]


def _facts(init: Mapping[str, Any]) -> dict[str, Any]:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(dict(init["plans"]))
    configuration = plans.get_configuration(init["configuration"])
    dataset = dict(init["dataset_json"])
    arguments = configuration.network_arch_init_kwargs
    return {
        "configuration": init["configuration"],
        "patch size": tuple(configuration.patch_size),
        "input channels": determine_num_input_channels(plans, configuration, dataset),
        "outputs": plans.get_label_manager(dataset).num_segmentation_heads,
        "network of the plan": configuration.network_arch_class_name,
        "features": tuple(arguments.get("features_per_stage", ())),
        "strides": [tuple(stride) if isinstance(stride, list) else stride for stride in arguments.get("strides", ())],
    }


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160].rstrip(": ")
