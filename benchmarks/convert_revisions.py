"""What `lcl convert html` costs beside itself at another commit, on a folder of real pages.

    python benchmarks/convert_revisions.py FOLDER REVISION [--rounds 3]

They take turns, each in a fresh process with one worker, the other commit from a worktree of its own; CPU
time of the conversion alone, without imports. Splitting long documents, which bc4b925 and commits before it
could not, is timed by itself. The digest of all shards tells whether the same came out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]

_CONVERT = """
import hashlib, json, sys, time
from pathlib import Path
from lcl_composer.convert.engine import convert
from lcl_composer.convert.html import HTML
out = Path(sys.argv[2])
begin = time.process_time()
source = HTML(Path(sys.argv[1]), **json.loads(sys.argv[3]))
report = convert(source, str(out), workers=1, progress=False)
seconds, digest = time.process_time() - begin, hashlib.sha256()
for path in sorted(out.rglob("*.mds*")):
    digest.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
print(json.dumps([seconds, report.documents, digest.hexdigest()[:12]]))
"""


def convert_at(tree: Path, pages: Path, options: dict[str, int]) -> tuple[float, int, str]:
    """Return CPU seconds, documents and the shards' digest of a conversion by the code of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            _CONVERT,
            str(pages),
            f"{folder}/out",
            json.dumps(options),
        ]
        done = subprocess.run(command, cwd=tree, check=True, stdout=subprocess.PIPE, text=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Convert in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pages", type=lambda name: Path(name).resolve())
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        tree = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), options.revision], check=True)
        stack.callback(subprocess.run, [*git, "remove", "--force", str(tree)], check=True)
        sides = {options.revision: (tree, {}), "here, unsplit": (ROOT, {"max_tokens": 0}), "here": (ROOT, {})}
        rounds = [
            [convert_at(where, options.pages, given) for where, given in sides.values()]
            for _ in range(options.rounds)
        ]
    print("| code | CPU seconds | ratio | documents | ms a document | shards |\n|---|---|---|---|---|---|")
    before = median(row[0][0] for row in rounds)
    for place, name in enumerate(sides):
        seconds = median(row[place][0] for row in rounds)
        _, documents, digest = rounds[0][place]
        figures = f"{seconds:.2f} | {seconds / before:.2f} | {documents:,} | {1e3 * seconds / documents:.1f}"
        print(f"| {name} | {figures} | {digest} |")


if __name__ == "__main__":
    main()
