"""Exit 0 while the server answers a tiny photo or is busy with others, 1 once it does not.

For health checks of containers: python3 canary.py [HOST:PORT]
"""

from __future__ import annotations

import sys

from pikfix.serving.health import canary


def main() -> int:
    """Send one canary request."""
    health = canary(sys.argv[1] if len(sys.argv) > 1 else "localhost:8001", timeout_s=15.0)
    if health.problem:
        sys.stderr.write(f"{health.state}: {health.problem}\n")
    return 0 if health.state in ("healthy", "busy") else 1


if __name__ == "__main__":
    sys.exit(main())
