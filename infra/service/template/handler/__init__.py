"""[= title =]: keep `warm`, the engine; the other files are yours."""
