"""What an order costs: this handler, the recipes it replaces and the bare driver, side by side.

`baselines`: the handlers to compare with. `warm`, `cold`, `scale`: what is measured; `worker`: a
warm handler in a process of its own; `report`, `plot`: what came of it. `make bench` runs them all.
"""
