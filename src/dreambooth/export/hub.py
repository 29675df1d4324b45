"""Putting an export on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from dreambooth.errors import RunError, UserError


def require_possible(repository: str) -> None:
    """Refuse an upload that cannot be; the hub is not asked.

    Raises:
        UserError: The repository's name is none, or the hub must not be asked.
    """
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except errors.HFValidationError as error:
        raise UserError(f"'{repository}' is no repository's name: write OWNER/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it")


def push_to_hub(folder: Path, repository: str, private: bool = True) -> str:
    """Upload an export to a hub repository, which is made if it is not there.

    Args:
        folder: What `export` wrote.
        repository: "owner/name".
        private: Whether a new repository is seen by its owner alone; the pictures in it show the subject.

    Returns:
        The repository's address.

    Raises:
        UserError: The name is none, or the hub does not let the user write there.
        RunError: The hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    require_possible(repository)
    api = HfApi(library_name="dreambooth")
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=url.repo_id, commit_message="Export of a dreambooth run")
    except errors.HfHubHTTPError as error:
        raise _refused(repository, error.response.status_code if error.response is not None else 0) from error
    except ValueError as error:  # of its card
        told = " ".join(str(error).split())
        raise RunError(f"the hub refuses {folder}/README.md ({told}): mend it, and upload the folder") from error
    except (OSError, errors.HTTPError) as error:
        raise RunError(f"the hub cannot be reached ({error}): {folder} is whole, upload it later") from error
    return str(url)


def _refused(repository: str, status: int) -> Exception:
    if status == 401:
        return UserError(f"the hub does not know you, so {repository} cannot be written: log in with `hf auth login`")
    if status == 403:
        return UserError(f"you may not write to {repository}: name one of your own, or log in with a token that may")
    return RunError(f"the hub refused the upload to {repository} (status {status}): try again later")
