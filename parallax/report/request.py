"""What a report was asked for, read back from its report.json, so that it can be run again."""

import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 3


def load_request(path: str | Path) -> dict[str, Any]:
    """The resolved flags in a report.json.

    Raises:
      ValueError: not there, not JSON, not a report, or of another schema version.
    """
    where = f"--from_report={path}"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}. Give the path of a report.json.") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}. Give the path of a report.json.") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ValueError(f"{where}: not a report: no 'schema_version'. Give a report.json.")
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{where}: schema_version is {data['schema_version']!r}, this Parallax reads "
            f"{SCHEMA_VERSION}. Run the comparison again with this version."
        )
    request = data.get("request")
    if not isinstance(request, dict) or not request:
        found = "missing" if request is None else "empty or no object"
        raise ValueError(
            f"{where}: field 'request' is {found}, expected the resolved flags. "
            "Give the report.json of a finished run."
        )
    return request
