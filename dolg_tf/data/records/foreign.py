"""Records of other people, in words: which key is missing or of which type; compressed files."""

from dolg_tf.data import protos
from dolg_tf.stage.config import InputError

_REMEDY = "`dolg records` writes such records; see docs/training.md"
_SOME = 64  # records
_NEEDED = {"image/encoded": "bytes", "image/id": "bytes"}
_LABEL = "image/class/label"  # test records have none
# The first bytes of a compressed file, and what unpacks it. zlib's second byte is its level.
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip -c FILE > OTHER"),
    *((b"\x78" + level, "zlib", "pigz -dc < FILE > OTHER")
      for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd FILE -o OTHER"),
)  # fmt: skip


def compression(head: bytes) -> str:
    """Returns how a file is compressed and what to do, or "".

    Records are read from the middle of their files, which a compressed file does not allow.

    Args:
      head: the first bytes of the file.
    """
    for magic, name, command in _COMPRESSED:
        if head.startswith(magic):
            return f"the file is compressed with {name}; unpack it first: `{command}`"
    return ""


def _kind(value) -> str:
    """Returns the type of a feature."""
    found = [kind for kind in ("bytes", "int64") if value.HasField(f"{kind}_list")]
    return found[0] if found else "float or empty"


def schema_fault(data: bytes) -> str:
    """Returns what keeps a record from being a photo in DELG's schema, or "".

    Args:
      data: the record.
    """
    try:
        entries = protos.parse(protos.example_class(), data).features.feature
    except ValueError as error:
        return f"not a tf.train.Example ({error}); {_REMEDY}"
    values = {entry.key: entry.value for entry in entries}
    for key, kind in {**_NEEDED, _LABEL: "int64"}.items():
        if key not in values:
            if key == _LABEL:
                continue
            others = ", ".join(sorted(values)) or "none"
            return f"no {key}, which DELG's schema needs; its keys are: {others:.200}; {_REMEDY}"
        found = _kind(values[key])
        if found != kind:
            return f"{key} is {found}, not {kind} as in DELG's schema; {_REMEDY}"
        count = len(getattr(values[key], f"{kind}_list").value)
        if count != 1:
            return f"{key} has {count} values, not one; {_REMEDY}"
    return ""


def refuse_foreign(index) -> None:
    """Makes sure that not all records are of another schema: skipping would leave nothing.

    Args:
      index: a `tfrecord.RecordIndex`, of which the first records are read until one fits.

    Raises:
      InputError: naming the first record and what it lacks.
    """
    first = ""
    for number in range(min(len(index), _SOME)):
        try:
            fault = schema_fault(index.read(number))
        except InputError:  # a wrong checksum: damaged, not foreign
            return
        if not fault:
            return
        first = first or f"{index.where(number)}: {fault}"
    if first:
        raise InputError(first)
