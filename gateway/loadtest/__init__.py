"""How many long-polling clients a deployment holds: `gateway bench`.

`ladder` decides how many clients come next and what a step was worth, `tally` counts what they meet, both without I/O; `crowd`
are the clients; `report` is what people see.
"""
