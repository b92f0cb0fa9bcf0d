"""`make mutations`: breaks the code one way at a time and looks whether the named test turns red.

Each `*.patch` begins with what it breaks and the test that must notice. A mutation that goes
unnoticed, does not apply any more or breaks its test in another way than failing it is an error.
"""
