"""DDPO under the name that guides give its script; see ddpo.py."""

from __future__ import annotations

from ddpo import main

if __name__ == "__main__":
    main()
