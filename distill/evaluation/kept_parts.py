"""Results of long measurements, kept on disk and used again where nothing has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.evaluation.certificate import finite
from distill.evaluation.results import replace_text


class KeptParts:
    """One JSON file for each part in a folder.

    Args:
        folder: made if missing.
        identity: what all parts depend on, ready for JSON: hashes of the bundle and the data.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self._identity = folder, dict(identity)

    def get(
        self, name: str, settings: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The kept result of `name`, or what `measure` gives if settings or identity differ.

        What is not finite becomes None, whether measured now or before.
        """
        text = json.dumps([name, self._identity, settings], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        path = self.folder / f"{name}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == key:
                print(f"{name}: kept from before")
                return dict(kept["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        print(f"{name}: measuring")
        result = finite(measure())
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"key": key, "settings": settings, "result": result}
        replace_text(path, json.dumps(record, indent=1, default=str, allow_nan=False) + "\n")
        return dict(json.loads(path.read_text(encoding="utf-8"))["result"])
