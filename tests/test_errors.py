from __future__ import annotations

from lcl_composer.errors import ConfigError, DataError, LCLError, did_you_mean, one_line


def test_errors_are_one_family() -> None:
    assert issubclass(ConfigError, LCLError)
    assert issubclass(DataError, LCLError)


def test_did_you_mean_names_the_nearest_or_all() -> None:
    assert did_you_mean("shufle", ["shuffle", "local"]) == "did you mean 'shuffle'?"
    assert did_you_mean("xyz", ["shuffle", "local"]) == "known: local, shuffle"
    assert did_you_mean("xyz", []) == "nothing is allowed here"


def test_what_a_library_says_of_an_address_has_no_password() -> None:
    said = OSError(
        "API request to https://me:s3cret@host:5000/api failed\n with http://host:80/a@b and s3://b/k"
    )
    assert (
        one_line(said)
        == "API request to https://...@host:5000/api failed with http://host:80/a@b and s3://b/k"
    )
