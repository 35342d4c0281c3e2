"""structlog without rich, which it imports wherever it finds it, for tracebacks that nobody here asks for.

It would be 7 MiB more in each process of the server, locked in swap mode.
"""

from __future__ import annotations

import sys

_hidden = "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import FilteringBoundLogger, WrappedLogger
finally:
    if _hidden:
        del sys.modules["rich"]

__all__ = ["FilteringBoundLogger", "WrappedLogger", "structlog"]
