"""`make examine`: what a function does to its database when Lambda freezes, ends or replaces it.

`inputs` reads the settings, `lab` runs the servers and sandboxes, `properties` lists the properties
and their remedies, and `report` writes the results. The other modules each measure some of the
properties. docs/examine.md explains them.
"""
