from __future__ import annotations

from pathlib import Path

import torch

from lcl_composer.versions import PACKAGE, source_digest, versions_of


def test_a_package_that_is_not_there_has_none() -> None:
    found = versions_of(["torch", "no-such-package"])
    assert found.pop("no-such-package") is None
    assert found["torch"] in torch.__version__  # without +cu126


def test_the_digest_changes_with_names_contents_and_files(tmp_path: Path) -> None:
    package, drop_ins = tmp_path / "package", tmp_path / "callbacks"
    package.mkdir()
    file = package / "a.py"
    found = [source_digest(package, drop_ins)]
    file.write_text("1")
    found.append(source_digest(package, drop_ins))
    file.write_text("2")
    found.append(source_digest(package, drop_ins))
    file.rename(package / "b.py")
    found.append(source_digest(package, drop_ins))
    drop_ins.mkdir()
    (drop_ins / "mine.py").write_text("")
    found.append(source_digest(package, drop_ins))
    assert len(set(found)) == 5
    assert source_digest(PACKAGE) == source_digest(PACKAGE)
