"""Names of networks on the command line, known without importing the networks."""

import difflib
from collections.abc import Sequence

MEASURED = (
    "PlainConvUNet",
    "ResidualEncoderUNet",
    "SASAN",
    "EM-Net",
    "SALSTM",
    "LSTMSA",
    "FAF-Net",
    "MT-UNet",
    "U-Mamba Enc",
    "U-Mamba Bot",
    "U-Mamba Bot without Mamba",
)
"""Networks that `nnunet_ext bench` measures."""
IMPORTABLE = ("em_net", "faf_net", "lstmsa", "mt_unet", "salstm", "sasan", "umamba_bot", "umamba_enc")
"""Networks whose authors' weights `nnunet_ext import-weights` imports."""


def known_name(name: str, known: Sequence[str]) -> str | None:
    """The known name with the same letters and digits, whatever their case: EM-Net for em_net; None if none has."""
    return {_letters(other): other for other in known}.get(_letters(name))


def unknown_name(name: str, known: Sequence[str], others: str = "") -> ValueError:
    """The error for an unknown network, with a guess and the known names.

    Args:
        name: The name.
        known: Known names.
        others: End of the sentence, if there are other names besides these.
    """
    letters = {_letters(other): other for other in known}
    close = difflib.get_close_matches(_letters(name), letters, 1)
    guess = f"did you mean {letters[close[0]]}? " if close else ""
    return ValueError(f"unknown network {name!r}; {guess}known: {', '.join(known)}{others}")


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
