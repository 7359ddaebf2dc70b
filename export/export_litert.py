"""A network as an LiteRT file: the same as `dolg export --mode=litert`."""

import sys

from dolg_tf import cli

if __name__ == "__main__":
    cli.run("export", [*sys.argv[1:], "--mode=litert"], "python export/export_litert.py")
