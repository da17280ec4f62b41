"""Converts the pages of ten Debian packages of documentation, each of another generator, and prints a table.

python scripts/real_sites.py FOLDER    # packages are fetched into it once; needs apt-get and dpkg-deb
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from lcl_composer.convert.engine import convert
from lcl_composer.convert.html import HTML
from lcl_composer.convert.report import ConversionReport

#: A site's package, or packages that make it up, and its generator.
PACKAGES = {
    "python-pymeasure-doc": "Sphinx, Read the Docs",
    "python-nibabel-doc": "Sphinx, alabaster's kind",
    "gimp-help-en": "DocBook",
    "netcdf-doc": "Doxygen",
    "kicad-doc-en": "Asciidoctor",
    "libjfreechart-java-doc": "javadoc",
    "mkdocs-doc": "MkDocs",
    "latex2html": "LaTeX2HTML",
    "libgtk-3-doc": "gtk-doc (GNOME)",
    "libreoffice-help-en-us libreoffice-help-common": "LibreOffice",
}


def fetch(packages: str, folder: Path) -> Path:
    """Return the folder with the packages' files, which are fetched if they are not there."""
    unpacked = folder / packages.split()[0]
    if not unpacked.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages.split()]
            subprocess.run(apt, cwd=work, check=True)
            for archive in Path(work).glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", archive, Path(work, "root")], check=True)
            Path(work, "root").rename(unpacked)
    return unpacked


def row(package: str, report: ConversionReport) -> str:
    """Return a site's row of the table."""
    images = report.images.total + report.dropped_images.total() + report.cut_images.total()
    cells = (
        f"`{package.split()[0]}`",
        PACKAGES[package],
        f"{report.read:,} / {report.read - report.dropped.total():,}",
        f"{images:,} / {report.images.total:,}",
        _by_reason(report.dropped_images),
        _by_reason(report.cut_images),
        f"{report.words.total:,}",
        _by_reason(report.cut_words),
    )
    return f"| {' | '.join(cells)} |"


def _by_reason(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common(4) if count) or "none"


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(
        "| package | generator | pages read / kept | images read / kept | left out | cut | words kept | cut |"
    )
    print("| --- " * 8 + "|")
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as out:
            report = convert(HTML(fetch(package, folder)), f"{out}/pages", progress=False, workers=1)
            print(row(package, report), flush=True)


if __name__ == "__main__":
    main()
