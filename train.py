"""Entry point of Composer's launcher: ``composer train.py yamls/pretrain/x.yaml a.b=c``."""

import os
import sys
from pathlib import Path

from lcl_composer.errors import LCLError
from lcl_composer.train import train

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork after the first use
    if len(sys.argv) < 2:
        sys.exit("usage: composer train.py YAML [a.b=c ...]")
    try:
        train(Path(sys.argv[1]), sys.argv[2:])
    except LCLError as error:
        sys.exit(f"error: {error}")
