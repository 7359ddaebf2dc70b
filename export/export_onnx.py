"""A network as an ONNX file: the same as `dolg export --mode=onnx`."""

import sys

from dolg_tf import cli

if __name__ == "__main__":
    cli.run("export", [*sys.argv[1:], "--mode=onnx"], "python export/export_onnx.py")
