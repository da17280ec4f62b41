"""The script that fetches the real documents, with stand-ins for apt-get and dpkg-deb."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_real.sh"
APT = """#!/bin/sh
for name; do :; done
echo "$name" >> "{log}"
[ "$name" = "{absent}" ] && exit 100
echo "$name" > "$name.deb"
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/share/gimp/2.0/help/en" "$3/usr/share/tuxpaint/stamps"
cp "$2" "$3/usr/share/gimp/2.0/help/en"; cp "$2" "$3/usr/share/tuxpaint/stamps"
"""


@pytest.fixture
def fetch(tmp_path):
    """Runs the script; ``absent`` is the package that cannot be downloaded."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "mktemp", "chmod", "mv", "rm", "cp"):
        (tools / name).symlink_to(
            next(p for d in os.defpath.split(":") if (p := Path(d or ".") / name).exists())
        )

    def run(absent: str = "", installed: bool = True) -> subprocess.CompletedProcess[str]:
        for name, text in (("apt-get", APT.format(log=tmp_path / "log", absent=absent)), ("dpkg-deb", DPKG)):
            (tools / name).unlink(missing_ok=True)
            if installed:
                (tools / name).write_text(text)
                (tools / name).chmod(0o755)
        command = ["bash", str(SCRIPT), str(tmp_path / "data")]
        return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)

    return run


def test_each_package_is_unpacked_once(fetch, tmp_path):
    share = tmp_path / "data" / "usr" / "share"
    for _ in range(2):
        assert fetch().returncode == 0
        assert [p.name for p in (share / "gimp/2.0/help/en").iterdir()] == ["gimp-help-en.deb"]
        assert [p.name for p in (share / "tuxpaint/stamps").iterdir()] == ["tuxpaint-stamps-default.deb"]
    assert (tmp_path / "log").read_text().split() == ["gimp-help-en", "tuxpaint-stamps-default"]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["usr"]


def test_a_failed_download_says_what_to_do_and_the_next_run_goes_on(fetch, tmp_path):
    failed = fetch(absent="tuxpaint-stamps-default")
    assert failed.returncode == 1
    assert "cannot download tuxpaint-stamps-default" in failed.stderr
    assert "apt-get update" in failed.stderr
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["usr"]
    assert fetch().returncode == 0
    assert (tmp_path / "log").read_text().split().count("gimp-help-en") == 1


def test_without_apt_the_message_names_the_way_round(fetch):
    done = fetch(installed=False)
    assert done.returncode == 1
    assert "Debian or Ubuntu" in done.stderr
    assert "lcl convert html" in done.stderr
