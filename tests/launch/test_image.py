"""The image: what its Dockerfile says, and with ``LCL_BUILD_IMAGE=1`` every line of it carried out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.dockerfile import base_of, build, instructions, run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
#: The distribution in the base image's name; its CUDA driver files are the host's to bring.
_SUITE, _MIRROR = "jammy", "http://archive.ubuntu.com/ubuntu"


def why_not() -> str:
    """Why the image cannot be built here; "" if it can."""
    if not os.environ.get("LCL_BUILD_IMAGE"):
        return "takes 15 GB of disk and some minutes; LCL_BUILD_IMAGE=1 asks for it"
    if os.geteuid() or not shutil.which("debootstrap"):
        return "needs root and debootstrap (apt-get install debootstrap)"
    return ""


def test_what_builds_stays_behind() -> None:
    stages = [i.value for i in instructions(TEXT) if i.name == "FROM"]
    assert stages == ["nvidia/cuda:12.6.3-base-ubuntu22.04 AS base", "base AS environment", "base"]
    last = TEXT[TEXT.rindex("\nFROM ") :]
    assert "pip install" not in last
    assert "/opt/uv" not in last


def test_the_image_is_pinned_and_knows_how_it_is() -> None:
    assert base_of(TEXT) == "nvidia/cuda:12.6.3-base-ubuntu22.04"
    assert "uv==" in TEXT
    assert "--constraints constraints.txt" in TEXT
    (health,) = [i.value for i in instructions(TEXT) if i.name == "HEALTHCHECK"]
    assert 'CMD ["launch/healthy.sh"]' in health


def test_lines_are_carried_out_in_their_stage(tmp_path: Path) -> None:
    """The builder itself, on a Dockerfile that runs nothing."""
    (tmp_path / "base").mkdir()
    (tmp_path / "context").mkdir()
    (tmp_path / "context/a.txt").write_text("a")
    text = """
FROM image AS one
ENV A=1 \\
    PATH=/opt/bin:$PATH
WORKDIR /work
COPY a.txt ./
FROM image
# a comment
COPY --from=one /work /copied
USER 1000
"""
    stage = build(text, tmp_path / "context", tmp_path / "base", tmp_path)
    assert (stage.root / "copied/a.txt").read_text() == "a"
    assert (stage.user, stage.environment) == ("1000", {})
    one = build(text[: text.rindex("FROM")], tmp_path / "context", tmp_path / "base", tmp_path / "context")
    assert one.environment["PATH"].startswith("/opt/bin:/usr/")
    assert not list((tmp_path / "base").iterdir())


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.timeout(3600)
def test_every_line_runs_in_a_clean_system(tmp_path: Path) -> None:
    base = tmp_path / "base"
    options = ["--variant=minbase", "--components=main,universe"]
    # The archive's signature is not checked: its keyring is not part of Debian, and nothing is kept.
    subprocess.run(["debootstrap", *options, "--no-check-gpg", _SUITE, str(base), _MIRROR], check=True)
    archive = f"deb {_MIRROR} {_SUITE} main universe\ndeb {_MIRROR} {_SUITE}-updates main universe\n"
    (base / "etc/apt/sources.list").write_text(archive)
    context = tmp_path / "context"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(context)], check=True)
    image = build(TEXT, context, base, tmp_path)
    try:
        assert "settings" in run(image, ["lcl", "check", "yamls/quickstart.yaml"]).lower()
        told = run(image, ["lcl", "check", "--preflight", "yamls/quickstart.yaml"])
        assert "preflight: 0 to mend" in told or "all well" in told
        assert run(image, ["id", "--user"]).strip() == "1000"
        assert not (image.root / "opt/uv").exists()
    finally:
        for folder in tmp_path.glob("stage*"):
            shutil.rmtree(folder, ignore_errors=True)
