from __future__ import annotations

from lcl_composer.errors import ConfigError, DataError, LCLError, did_you_mean


def test_errors_are_one_family() -> None:
    assert issubclass(ConfigError, LCLError)
    assert issubclass(DataError, LCLError)


def test_did_you_mean_names_the_nearest_or_all() -> None:
    assert did_you_mean("shufle", ["shuffle", "local"]) == "did you mean 'shuffle'?"
    assert did_you_mean("xyz", ["shuffle", "local"]) == "known: local, shuffle"
    assert did_you_mean("xyz", []) == "nothing is allowed here"
