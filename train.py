"""Trains a DOLG network: `python train.py --flagfile=configs/r50.flags`, as `dolg train`."""

import sys

from dolg_tf import cli

if __name__ == "__main__":
    cli.run("train", sys.argv[1:], "python train.py")
