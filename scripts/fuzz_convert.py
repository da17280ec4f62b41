"""Damages the files of small sources and converts them: nothing may crash, hang or be lost uncounted.

    python scripts/fuzz_convert.py [--inputs 3000] [--seed 0] [--formats ../shared/formats]

An input is a source with one file damaged: bits flipped, cut off, bytes spliced in from it or another file of
the source, a stretch repeated, dropped or zeroed. A conversion must end within ten seconds, in a report or in
an error of one line; where fewer documents come out than of the whole source, the report must count something
as dropped, left out, mended, broken or passed over. A row cut out of a CSV or JSON leaves no trace, so losses
from those that became shorter are allowed. Number and seed give an input again: ``--inputs 1 --first N``.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lcl_composer.convert.engine import convert  # noqa: E402
from lcl_composer.convert.report import ConversionReport  # noqa: E402
from lcl_composer.errors import LCLError  # noqa: E402
from scripts.fuzz_samples import Sample, own_samples, published_samples  # noqa: E402

#: Seconds that a conversion of these few files may take.
LIMIT = 10.0
#: Lists of records as text: a record cut out of one leaves no trace.
_LISTS = frozenset({".csv", ".json", ".jsonl"})
_COUNTS = ("dropped", "dropped_images", "broken", "mended", "passed_over")


class Hang(BaseException):
    """A conversion takes too long; no ``except Exception`` may swallow it."""


def damage(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Return a file's bytes damaged in one of six ways."""
    size = max(1, len(data))
    at, length = int(rng.integers(size)), int(rng.integers(1, max(2, min(size, 400))))
    way = int(rng.integers(6))
    if way == 0:
        flipped = bytearray(data)
        for place in rng.integers(size, size=int(rng.integers(1, 9))).tolist():
            if place < len(flipped):
                flipped[place] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    if way == 1:
        return data[:at]
    if way == 2:
        start = int(rng.integers(max(1, len(other))))
        return data[:at] + other[start : start + length] + data[at:]
    if way == 3:
        return data[: at + length] + data[at:]
    if way == 4:
        return data[:at] + data[at + length :]
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def run(sample: Sample, whole: int, number: int, seed: int, scratch: Path) -> tuple[str, Counter[str]]:
    """Convert one damaged copy; return what is wrong, empty if nothing is, and what no one foresaw."""
    rng = np.random.default_rng([seed, number])
    copy, out = scratch / "copy", scratch / "out"
    shutil.copytree(sample.folder, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    victim, other = (files[int(i)] for i in rng.integers(len(files), size=2))
    data = victim.read_bytes()
    damaged = damage(data, other.read_bytes(), rng)
    victim.write_bytes(damaged)
    if victim.suffix in _LISTS and len(damaged) < len(data):
        whole = 0
    problem, unforeseen = "", Counter[str]()
    started = time.monotonic()
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(3 * LIMIT, exit=True)  # where no Python code runs
    try:
        report = convert(sample.source(copy), str(out), workers=1, progress=False)
        problem, unforeseen = judge(report, whole), unforeseen_reasons(report)
    except LCLError as error:
        problem = "an error of several lines" if "\n" in str(error) else ""
    except Hang:
        problem = f"no end within {LIMIT:.0f} s"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for path in scratch.iterdir():  # folders, and the failures of a conversion that kept nothing
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not problem and time.monotonic() - started > LIMIT:
        problem = f"took over {LIMIT:.0f} s"
    name = victim.relative_to(copy)
    return (f"{number}: {sample.name}, {name}: {problem}" if problem else ""), unforeseen


def judge(report: ConversionReport, whole: int) -> str:
    """Return what is wrong with a report, empty if nothing is."""
    counted = sum(sum(getattr(report, name).values()) for name in _COUNTS)
    if report.documents < whole and not counted:
        return f"{report.documents} of {whole} documents, and nothing is counted"
    return ""


def unforeseen_reasons(report: ConversionReport) -> Counter[str]:
    """Return the reasons that stand for an exception no converter expected."""
    reasons = report.dropped + report.broken
    return Counter({reason: n for reason, n in reasons.items() if reason.startswith("cannot be ")})


def _hang(*_: object) -> None:
    raise Hang


def fuzz_some(numbers: range, samples: list[Sample], seed: int) -> tuple[list[str], Counter[str]]:
    """Run inputs one after the other; return the problems and what no one foresaw."""
    problems: list[str] = []
    unforeseen = Counter[str]()
    whole: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        for number in numbers:
            sample = samples[number % len(samples)]
            scratch = Path(name, "work")
            scratch.mkdir(exist_ok=True)
            if sample.name not in whole:
                out = Path(name, f"whole {sample.name}")
                report = convert(sample.source(sample.folder), str(out), workers=1, progress=False)
                whole[sample.name] = report.documents
            problem, reasons = run(sample, whole[sample.name], number, seed, scratch)
            problems += [problem] if problem else []
            unforeseen += reasons
    return problems, unforeseen


def main() -> None:
    """Fuzz and print what is wrong; end with 1 if anything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=3000, help="damaged sources (default: 3000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--formats", type=Path, help="folder of published layouts to damage as well")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        samples = own_samples(Path(folder)) + (
            published_samples(arguments.formats) if arguments.formats else []
        )
        numbers = range(arguments.first, arguments.first + arguments.inputs)
        lots = [numbers[i : i + 50] for i in range(0, len(numbers), 50)]
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(arguments.workers, context) as pool:
            found = list(pool.map(partial(fuzz_some, samples=samples, seed=arguments.seed), lots))
    problems = [problem for some, _ in found for problem in some]
    unforeseen = sum((reasons for _, reasons in found), Counter[str]())
    print("\n".join(problems))
    for reason, count in unforeseen.most_common():
        print(f"counted, but not foreseen: {reason} ({count})")
    seconds = time.monotonic() - started
    print(f"{len(numbers)} inputs of {len(samples)} sources, {len(problems)} problems, {seconds:.0f} s")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
