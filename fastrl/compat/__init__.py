"""TRL's module paths and names of every release, answered by the one class or function each has."""
