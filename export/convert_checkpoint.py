"""Other people's weights -> a model directory, or back: the same as `dolg convert`."""

import sys

from dolg_tf import cli

if __name__ == "__main__":
    cli.run("convert", sys.argv[1:], "python export/convert_checkpoint.py")
