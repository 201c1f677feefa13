"""Reading the request back from a report.json, so that the comparison can be run again."""

import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 3


def load_request(path: str | Path) -> dict[str, Any]:
    """Return the resolved flags in a report.json.

    Raises:
      ValueError: the file is missing, not JSON, not a report, or of another schema version.
    """
    context = f"--from_report={path}"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{context}: {error.strerror}. Give the path of a report.json.") from None
    except ValueError as error:
        raise ValueError(f"{context}: not JSON: {error}. Give the path of a report.json.") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ValueError(f"{context}: not a report: no 'schema_version'. Give a report.json.")
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{context}: schema_version is {data['schema_version']!r}, this Parallax reads "
            f"{SCHEMA_VERSION}. Run the comparison again with this version."
        )
    request = data.get("request")
    if not isinstance(request, dict) or not request:
        state = "missing" if request is None else "empty or not an object"
        raise ValueError(
            f"{context}: field 'request' is {state}, expected the resolved flags. "
            "Give the report.json of a finished run."
        )
    return request
