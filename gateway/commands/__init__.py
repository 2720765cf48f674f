"""The command line: each module holds commands that belong together, and is imported only when one of them is called.

`operating` runs and checks a gateway, `keys` are API keys, `asking` looks at channels and cursors, `tailing` and `publishing`
read and write messages, `bench` finds out how many clients a deployment holds. `connecting` is what the clients among them
share. Exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong, 3 the gateway refuses the caller, 130
interrupted.
"""
