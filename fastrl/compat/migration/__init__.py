"""Scripts rewritten from TRL's spellings of 0.7 to 0.11 to fastrl's of today."""

from fastrl.compat.migration.script import Migrated, migrate

__all__ = ["Migrated", "migrate"]
