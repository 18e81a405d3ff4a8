"""TRL 0.7.11 and fastrl asked to do the same thing; `record.py` writes what came out."""
