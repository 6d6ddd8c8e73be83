"""A training run as typed, bounded values, and the reading of them from YAML and `key=value` overrides."""

from densekit.config.reading import (
    MAX_BYTES,
    config_hash,
    find_and_read,
    list_configs,
    load_config,
    parse_config,
    schema_json,
)
from densekit.config.schema import (
    Config,
    DataConfig,
    EvalConfig,
    GanConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

__all__ = [
    "MAX_BYTES",
    "Config",
    "DataConfig",
    "EvalConfig",
    "GanConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "config_hash",
    "find_and_read",
    "list_configs",
    "load_config",
    "parse_config",
    "schema_json",
]
