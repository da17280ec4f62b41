"""What a run ran on: versions, machine, and the exact source, as it is needed to run it again."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lcl_composer.versions import versions_of

PACKAGES = (
    "lcl-composer",
    "mosaicml",
    "mosaicml-streaming",
    "torch",
    "torchvision",
    "triton",
    "transformers",
    "timm",
    "open_clip_torch",
    "tokenizers",
    "numpy",
    "Pillow",
)

#: Untracked files up to this size go into the patch: a new drop-in is usually not committed yet.
MAX_UNTRACKED_BYTES = 100_000

_SOURCE = Path(__file__).resolve().parents[2]


def package_versions() -> dict[str, str | None]:
    """Version of each package of :data:`PACKAGES`; None where it is not installed."""
    return versions_of(PACKAGES)


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where there is no git, no repository or an error."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # `git diff --no-index` exits with 1 when the files differ
    return (
        done.stdout if done.returncode == 0 or (done.returncode == 1 and "--no-index" in arguments) else None
    )


def git_state(folder: Path = _SOURCE) -> tuple[dict[str, Any] | None, str]:
    """Commit and local changes of the repository around ``folder``.

    Returns:
        ``{"commit", "branch", "dirty", "untracked"}`` (None outside a repository), and a patch that turns the
        commit into the working tree ("" if there is nothing to turn), with small untracked text files in it.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None, ""
    top = Path((_git(folder, "rev-parse", "--show-toplevel") or str(folder)).strip())
    untracked = (_git(top, "ls-files", "--others", "--exclude-standard") or "").splitlines()
    patch = _git(top, "diff", "--binary", "HEAD") or ""
    for name in untracked:
        if (top / name).is_file() and (top / name).stat().st_size <= MAX_UNTRACKED_BYTES:
            patch += _git(top, "diff", "--no-index", "--", "/dev/null", name) or ""
    branch = (_git(top, "rev-parse", "--abbrev-ref", "HEAD") or "").strip()
    state = {
        "commit": commit.strip(),
        "branch": branch,
        "dirty": bool(patch or untracked),
        "untracked": untracked,
    }
    return state, patch


def describe_environment() -> tuple[dict[str, Any], str]:
    """Facts about this process, fit for JSON, and the patch of :func:`git_state`.

    Environment variables and remote URLs stay out: they hold secrets.
    """
    import torch
    from torch.version import cuda

    git, patch = git_state()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "devices": devices or [platform.processor() or platform.machine()],
        "cuda": cuda if devices else None,
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
        "git": git,
    }
    return facts, patch
