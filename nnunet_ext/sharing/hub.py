"""Push to and pull from a Hugging Face repository, by the package huggingface_hub (extra `hub`)."""

import os
import re
from pathlib import Path
from types import ModuleType

from nnunet_ext.utils.messages import first_line

_PREFIX = "hf://"
_REFERENCE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_FILE, _CARD = "model.zip", "README.md"
_LICENCE = re.compile(r"[\w.-]+")


def is_reference(text: str) -> bool:
    """Whether a text names a repository of the hub rather than a file."""
    return text.startswith(_PREFIX)


def push(file: Path, card: str, repository: str, licence: str, private: bool) -> str:
    """Uploads a packed model and its card, in one commit; the repository is made if it does not exist.

    huggingface_hub must know who you are, by ``hf auth login`` or HF_TOKEN, and you must be allowed to write to it.

    Args:
        file: The packed model.
        card: The model card in Markdown.
        repository: OWNER/NAME.
        licence: The model's licence, for the hub's search if it is an identifier.
        private: Whether a new repository is private.

    Returns:
        The reference by which it is installed.

    Raises:
        ValueError: without huggingface_hub, for a wrong name, and for what the hub refuses.
    """
    hub = _hub()
    if not _REFERENCE.fullmatch(_PREFIX + repository):
        raise ValueError(f"--push {repository} must be OWNER/NAME")
    metadata = f"license: {licence.lower()}\n" if _LICENCE.fullmatch(licence) else ""
    page = f"---\n{metadata}tags: [nnunet, image-segmentation]\n---\n{card}"
    api = hub.HfApi(endpoint=_endpoint())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(
            repository,
            [
                hub.CommitOperationAdd(_FILE, str(file)),
                hub.CommitOperationAdd(_CARD, page.encode()),
            ],
            commit_message="nnunet_ext pack",
        )
    except Exception as error:  # the type depends on huggingface_hub's version and its HTTP library
        raise ValueError(f"{repository} was not pushed: {first_line(error)}") from error
    return f"{_PREFIX}{repository}@{commit.oid}"


def pull(reference: str) -> Path:
    """Downloads a packed model into huggingface_hub's cache.

    Args:
        reference: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION.

    Raises:
        ValueError: without huggingface_hub, for a wrong reference, and if there is no such file.
    """
    hub = _hub()
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ValueError(f"{reference} must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    try:
        return Path(hub.hf_hub_download(found["repo"], _FILE, revision=found["revision"], endpoint=_endpoint()))
    except Exception as error:  # as above
        raise ValueError(f"{reference} was not downloaded: {first_line(error)}") from error


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError("huggingface_hub is not installed: pip install 'nnunet_ext[hub]'") from error
    return huggingface_hub


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
