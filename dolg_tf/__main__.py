"""`python -m dolg_tf`, the same as `dolg`."""

from dolg_tf import cli

if __name__ == "__main__":
    cli.main(program="python -m dolg_tf")
