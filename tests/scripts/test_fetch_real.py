"""The script that fetches the real documents, with stand-ins for apt-get, dpkg-deb and npm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_real.sh"
DEBIAN = {
    "gimp-help-en": "usr/share/gimp/2.0/help/en",
    "kicad-doc-en": "usr/share/doc/kicad/help/en",
    "python-sklearn-doc": "usr/share/doc/python-sklearn-doc/html",
    "python-skimage-doc": "usr/share/doc/python-skimage-doc/html",
    "tuxpaint-stamps-default": "usr/share/tuxpaint/stamps",
}
NPM = ("openmoji@17.0.0", "emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0")
#: Both downloaders take the package's name last and leave a file here.
DOWNLOAD = """#!/bin/sh
for name; do :; done
echo "$name" >> "{log}"
[ "$name" = "{absent}" ] && exit 100
mkdir package && echo "$name" > package/name && tar -czf package.tgz package && echo "$name" > package.deb
"""
DPKG = "#!/bin/sh\n" + "".join(
    f'mkdir -p "$3/{path}" && cp "$2" "$3/{path}/name"\n' for path in DEBIAN.values()
)


@pytest.fixture
def fetch(tmp_path):
    """Runs the script; ``absent`` is the package that cannot be downloaded, ``without`` a tool not there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "mktemp", "chmod", "mv", "rm", "cp", "tar", "gzip"):
        (tools / name).symlink_to(
            next(p for d in os.defpath.split(":") if (p := Path(d or ".") / name).exists())
        )

    def run(absent: str = "", without: str = "") -> subprocess.CompletedProcess[str]:
        download = DOWNLOAD.format(log=tmp_path / "log", absent=absent)
        for name, text in (("apt-get", download), ("npm", download), ("dpkg-deb", DPKG)):
            (tools / name).unlink(missing_ok=True)
            if name != without:
                (tools / name).write_text(text)
                (tools / name).chmod(0o755)
        command = ["bash", str(SCRIPT), str(tmp_path / "data")]
        return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)

    return run


def test_each_package_is_unpacked_once(fetch, tmp_path):
    for _ in range(2):
        done = fetch()
        assert done.returncode == 0, done.stderr
        for package, path in DEBIAN.items():
            assert (tmp_path / "data" / path / "name").read_text().strip() == package
        for package in NPM:
            assert (tmp_path / "data" / package.split("@")[0] / "name").read_text().strip() == package
    assert (tmp_path / "log").read_text().split() == [*DEBIAN, *NPM]
    assert {p.name for p in (tmp_path / "data").iterdir()} == {"usr", *(p.split("@")[0] for p in NPM)}


@pytest.mark.parametrize(
    ("absent", "advice"), [("tuxpaint-stamps-default", "apt-get update"), ("openmoji@17.0.0", "npm")]
)
def test_a_failed_download_says_what_to_do_and_the_next_run_goes_on(fetch, tmp_path, absent, advice):
    failed = fetch(absent=absent)
    assert failed.returncode == 1
    assert f"cannot download {absent}" in failed.stderr
    assert advice in failed.stderr
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["usr"]
    assert fetch().returncode == 0
    assert (tmp_path / "log").read_text().split().count("gimp-help-en") == 1


@pytest.mark.parametrize("without", ["apt-get", "npm"])
def test_without_a_tool_the_message_names_the_way_round(fetch, without):
    done = fetch(without=without)
    assert done.returncode == 1
    assert "Debian or Ubuntu" in done.stderr
    assert "lcl convert html" in done.stderr
