"""`python -m fastrl` is the command `fastrl`."""

from __future__ import annotations

from fastrl.cli.main import main

raise SystemExit(main())
