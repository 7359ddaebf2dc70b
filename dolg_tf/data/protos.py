"""Protocol buffers of other programs: TensorFlow's records and DELF's descriptor files.

The messages are declared here, so that neither TensorFlow nor DELF must be imported: the records
builder starts many processes. They are in pools of their own, since programs that import TensorFlow
or DELF have the same names in the common pool.

Reference: `example.proto`, `feature.proto` of TensorFlow; `datum.proto`, `feature.proto` of
DELF.
"""

import functools

# Messages with their fields, numbered from 1.
_EXAMPLE = {
    "BytesList": {"value": "repeated bytes"},
    "FloatList": {"value": "repeated float"},
    "Int64List": {"value": "repeated int64"},
    "Feature": {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"},
    # On the wire a map is a list of its entries. As a list it keeps their order.
    "Entry": {"key": "string", "value": "Feature"},
    "Features": {"feature": "repeated Entry"},
    "Example": {"features": "Features"},
}
_DATUM = {
    "DatumShape": {"dim": "repeated int64"},
    "FloatList": {"value": "repeated float"},
    "DatumProto": {"shape": "DatumShape", "float_list": "FloatList"},
}
# With "optional", a field that is set is written even where it is 0, as by proto2.
_DELF = {
    **_DATUM,
    "DelfFeature": {
        "descriptor": "DatumProto",
        **dict.fromkeys(("x", "y", "scale", "orientation", "strength"), "optional float"),
    },
    "DelfFeatures": {"feature": "repeated DelfFeature"},
}


def _message_class(messages: dict[str, dict[str, str]], name: str) -> type:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    numbers = {
        "bytes": kinds.TYPE_BYTES,
        "float": kinds.TYPE_FLOAT,
        "int64": kinds.TYPE_INT64,
        "string": kinds.TYPE_STRING,
    }
    file = descriptor_pb2.FileDescriptorProto(name="messages.proto", package="m", syntax="proto3")
    for message, fields in messages.items():
        added = file.message_type.add(name=message)
        for number, (field, declared) in enumerate(fields.items(), 1):
            rule, _, kind = declared.rpartition(" ")
            one = added.field.add(name=field, number=number)
            one.label = kinds.LABEL_REPEATED if rule == "repeated" else kinds.LABEL_OPTIONAL
            if rule == "optional":  # proto3 says this by a `oneof` of one field
                one.proto3_optional, one.oneof_index = True, len(added.oneof_decl)
                added.oneof_decl.add(name=f"_{field}")
            one.type = numbers.get(kind, kinds.TYPE_MESSAGE)
            if kind in messages:
                one.type_name = f".m.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"m.{name}"))


@functools.cache
def example_class() -> type:
    """Returns the message class of `tf.train.Example`, with its map of features as a list."""
    return _message_class(_EXAMPLE, "Example")


@functools.cache
def datum_class() -> type:
    """Returns the message class of DELF's `DatumProto`."""
    return _message_class(_DATUM, "DatumProto")


@functools.cache
def delf_class() -> type:
    """Returns the message class of DELF's `DelfFeatures`."""
    return _message_class(_DELF, "DelfFeatures")


def parse(message_class: type, data: bytes):
    """Returns the message in serialised bytes.

    Raises:
      ValueError: when they are not such a message, or are cut short.
    """
    from google.protobuf.message import DecodeError

    message = message_class()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError("damaged, or cut short") from error
    return message
