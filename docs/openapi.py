"""Write docs/openapi.json, the schema that servers give at /openapi.json: python docs/openapi.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from service.app import create_app
from service.settings import Settings

SCHEMA: Final = Path(__file__).with_suffix(".json")


def schema() -> str:
    """The schema of a server that asks for a key, as the file holds it."""
    app = create_app(Settings(api_key=SecretStr("any"), root_path=""))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema(), "utf-8")
