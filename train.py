"""Entry point of Composer's launcher: ``composer train.py yamls/pretrain/x.yaml a.b=c``."""

import os
import sys

from lcl_composer.launched import run

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers fork after the first use
    sys.exit(run(sys.argv[1:]))
