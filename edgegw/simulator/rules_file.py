"""The rules file of the simulator: YAML on disk to Rules. Reads files; knows nothing of sockets."""

from __future__ import annotations

from pathlib import Path

import yaml

from edgegw.simulator.rules import Rules, RulesError


def load(path: str) -> Rules:
    """The rules of a YAML file (docs/simulator.md); RulesError, with the file's name, on everything that is wrong."""
    try:
        return Rules.build(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise RulesError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RulesError) as error:
        raise RulesError(f"{path}: {error}") from None
