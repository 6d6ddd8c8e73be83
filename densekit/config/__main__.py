"""Prints the JSON schema of a config file: `python -m densekit.config > configs/schema.json`."""

import sys

from densekit.config import schema_json

if __name__ == "__main__":
    sys.stdout.write(schema_json())
