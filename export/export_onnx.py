"""A network as an ONNX file: the same as `dolg export --mode=onnx`."""

import sys

from dolg_tf import cli

if __name__ == "__main__":
    cli.run("export", ["--mode=onnx", *sys.argv[1:]], "python export/export_onnx.py")
