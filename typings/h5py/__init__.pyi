# What an index gives depends on the file; the package says "group, data set or type" everywhere.
from typing import Any

def __getattr__(name: str) -> Any: ...
