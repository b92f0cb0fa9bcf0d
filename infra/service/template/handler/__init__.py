"""[= title =]. Keep `warm`, the engine; the other files are yours to change."""
