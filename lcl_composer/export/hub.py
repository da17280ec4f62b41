"""An export's way to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from lcl_composer.errors import ConfigError, DataError, one_line


def check_hub(repository: str) -> None:
    """Say what would make an upload fail, before anything is exported.

    Args:
        repository: ``OWNER/NAME``.

    Raises:
        ConfigError: If huggingface_hub is missing or told to stay offline, the name cannot be that of a
            repository, or nobody is logged in.
    """
    try:
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as error:
        raise ConfigError(
            f"export: --push needs huggingface_hub ({one_line(error)}); `pip install huggingface_hub`"
        ) from error
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"export: --push {repository}: {one_line(error)}") from error
    if "/" not in repository:
        raise ConfigError(f"export: --push {repository}: names no owner; write OWNER/{repository}")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"export: --push {repository}: HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise ConfigError(
            f"export: --push {repository}: no token of the Hub; log in with `hf auth login`, or set HF_TOKEN"
        )


def upload(folder: Path, repository: str) -> None:
    """Upload a folder to a repository of the Hub, which is made, private, if it is new.

    Args:
        folder: An export.
        repository: ``OWNER/NAME``.

    Raises:
        DataError: If the Hub refuses, or there is no way to it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by LCL-Composer")
    except Exception as error:  # of the Hub, of the network, of TLS: libraries' own, and several of them
        raise DataError(
            f"export: {folder} is written, but was not pushed to {repository}: {one_line(error)}; later "
            f"`hf upload {repository} {folder}` does it"
        ) from error
