"""Made-up img2dataset folders."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from tests.convert.samples import picture


def write_tar(path: Path, members: dict[str, bytes | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def pair(key: str, image: bytes | None = None, suffix: str = "jpg", **facts) -> dict[str, bytes | str]:
    facts = {"caption": f"caption {key}", "similarity": 0.3, "LANGUAGE": "en", **facts}
    return {
        f"{key}.{suffix}": picture(kind="JPEG") if image is None else image,
        f"{key}.json": json.dumps(facts),
        f"{key}.txt": str(facts["caption"]),
    }


def write_folder(folder: Path, tars: int, pairs: int) -> Path:
    """Write tars whose last pair is bad."""
    for number in range(tars):
        members: dict[str, bytes | str] = {}
        for i in range(pairs):
            key = f"{number:03d}{i:03d}"
            members |= pair(key, b"<html>" if i == pairs - 1 else None)
        write_tar(folder / f"{number:05d}.tar", members)
    return folder
