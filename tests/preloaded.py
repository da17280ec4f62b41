"""All that a test's processes import: they fork from a server that has done so once (conftest.py).

Without it each rank takes nine seconds to begin. What is new in the package is found by itself.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil

import composer.algorithms  # noqa: F401
import distributed  # noqa: F401
import hypothesis  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import open_clip  # noqa: F401
import pytest  # noqa: F401
import timm  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import transformers.models.opt.modeling_opt  # noqa: F401
import wandb.sdk.launch  # noqa: F401
from transformers.models.auto.modeling_auto import MODEL_MAPPING

import lcl_composer

MODEL_MAPPING.keys()  # a model's first use imports the configs of all

for found in pkgutil.walk_packages(lcl_composer.__path__, "lcl_composer."):
    if not found.name.endswith("_triton"):
        importlib.import_module(found.name)
gc.freeze()  # as conftest.py does; and what no collection visits stays shared with the server
