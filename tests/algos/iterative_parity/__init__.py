"""TRL 0.7.11's `IterativeSFTTrainer` and fastrl's asked to learn the same rows."""
