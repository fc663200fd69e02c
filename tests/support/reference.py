"""What the reference implementation (facebookresearch/deepconf at 675529d) computes."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parents[1] / "data" / "reference.json.gz"


@cache
def reference() -> dict[str, Any]:
    """Its results on 24 seeded random cases, and what it extracts from six texts."""
    return json.loads(gzip.decompress(_FILE.read_bytes()))
