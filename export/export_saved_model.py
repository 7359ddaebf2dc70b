"""A network as a SavedModel: the same as `dolg export`."""

import sys

from dolg_tf import cli

if __name__ == "__main__":
    cli.run("export", sys.argv[1:], "python export/export_saved_model.py")
