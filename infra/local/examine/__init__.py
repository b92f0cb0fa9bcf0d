"""What a function does to its database when Lambda freezes, ends or replaces it: `make examine`.

`inputs`: what is examined; `lab`: the real parts it is examined on; `properties`: what is asked of
it, each measured in a module of its own group; `report`: what came of it. docs/examine.md explains
the properties.
"""
