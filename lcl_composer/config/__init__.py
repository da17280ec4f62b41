"""Configuration: YAML files and overrides in, one validated and frozen RunConfig out."""

from lcl_composer.config.checks import check_batch_divides
from lcl_composer.config.compose import ComposedConfig, compose
from lcl_composer.config.schema import RunConfig

__all__ = ["ComposedConfig", "RunConfig", "check_batch_divides", "compose"]
