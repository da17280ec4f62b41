"""Small data sets of made-up Documents, as the tests of ``data/`` have them."""

from tests.data.conftest import _clean_shared_memory, make_dataset

__all__ = ["_clean_shared_memory", "make_dataset"]
