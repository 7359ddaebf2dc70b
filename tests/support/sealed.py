"""JSON with checksums, changed by hand in tests."""

import json
import pathlib

from dolg_tf.stage import checksums


def change(path, *drop, **changes):
    """Changes keys and drops others; the checksums of other files stay, its own is made right."""
    path = pathlib.Path(path)
    about = json.loads(path.read_text(encoding="utf-8")) | changes
    sums = about.pop(checksums.KEY, {})
    sums.pop(path.name, None)
    about = {key: value for key, value in about.items() if key not in drop}
    path.write_text(json.dumps(about))
    if sums and isinstance(about, dict):
        checksums.write_json(path, about, sums)


def forget(path):
    """Takes all checksums out, as an older release wrote it."""
    path = pathlib.Path(path)
    about = json.loads(path.read_text(encoding="utf-8"))
    about.pop(checksums.KEY)
    path.write_text(json.dumps(about))
