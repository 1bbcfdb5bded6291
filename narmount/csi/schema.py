"""The messages of CSI and of kubelet's plugin registration that the plugin uses. They are declared when this module is imported.

Field numbers and types are those of csi.proto (package csi.v1, version 1.12) and of pluginregistration v1 (api.proto of
k8s.io/kubelet). As usual in protobuf, fields that are not declared are ignored. Nested messages are declared at the top level here,
enums as numbers, and a oneof as its fields; the encoded bytes are the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

STRING, BOOL = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_BOOL
INT64, INT32 = FieldDescriptorProto.TYPE_INT64, FieldDescriptorProto.TYPE_INT32

BOOL_VALUE = ".google.protobuf.BoolValue"


class Field(NamedTuple):
    """A field of a message. ``kind`` is one of the types above, the name of a message, or MAP (a map of strings to strings)."""

    number: int
    kind: "int | str"
    is_repeated: bool = False


MAP = "map"

Schema = Mapping[str, Mapping[str, Field]]

_CSI: Schema = {
    "GetPluginInfoRequest": {},
    "GetPluginInfoResponse": {"name": Field(1, STRING), "vendor_version": Field(2, STRING), "manifest": Field(3, MAP)},
    "PluginCapability": {},
    "GetPluginCapabilitiesRequest": {},
    "GetPluginCapabilitiesResponse": {"capabilities": Field(1, "PluginCapability", True)},
    "ProbeRequest": {},
    "ProbeResponse": {"ready": Field(1, BOOL_VALUE)},
    "BlockVolume": {},
    "MountVolume": {
        "fs_type": Field(1, STRING),
        "mount_flags": Field(2, STRING, True),
        "volume_mount_group": Field(3, STRING),
    },
    "AccessMode": {"mode": Field(1, INT32)},
    "VolumeCapability": {
        "block": Field(1, "BlockVolume"),
        "mount": Field(2, "MountVolume"),
        "access_mode": Field(3, "AccessMode"),
    },
    "NodePublishVolumeRequest": {
        "volume_id": Field(1, STRING),
        "publish_context": Field(2, MAP),
        "staging_target_path": Field(3, STRING),
        "target_path": Field(4, STRING),
        "volume_capability": Field(5, "VolumeCapability"),
        "readonly": Field(6, BOOL),
        "secrets": Field(7, MAP),
        "volume_context": Field(8, MAP),
    },
    "NodePublishVolumeResponse": {},
    "NodeUnpublishVolumeRequest": {"volume_id": Field(1, STRING), "target_path": Field(2, STRING)},
    "NodeUnpublishVolumeResponse": {},
    "NodeGetVolumeStatsRequest": {
        "volume_id": Field(1, STRING),
        "volume_path": Field(2, STRING),
        "staging_target_path": Field(3, STRING),
    },
    "VolumeUsage": {
        "available": Field(1, INT64),
        "total": Field(2, INT64),
        "used": Field(3, INT64),
        "unit": Field(4, INT32),
    },
    "NodeGetVolumeStatsResponse": {"usage": Field(1, "VolumeUsage", True)},
    "NodeGetCapabilitiesRequest": {},
    "Rpc": {"type": Field(1, INT32)},
    "NodeServiceCapability": {"rpc": Field(1, "Rpc")},
    "NodeGetCapabilitiesResponse": {"capabilities": Field(1, "NodeServiceCapability", True)},
    "NodeGetInfoRequest": {},
    "NodeGetInfoResponse": {"node_id": Field(1, STRING), "max_volumes_per_node": Field(2, INT64)},
}

_REGISTRATION: Schema = {
    "InfoRequest": {},
    "PluginInfo": {
        "type": Field(1, STRING),
        "name": Field(2, STRING),
        "endpoint": Field(3, STRING),
        "supported_versions": Field(4, STRING, True),
    },
    "RegistrationStatus": {"plugin_registered": Field(1, BOOL), "error": Field(2, STRING)},
    "RegistrationStatusResponse": {},
}

# Enums: VolumeUsage.Unit, NodeServiceCapability.RPC.Type, VolumeCapability.AccessMode.Mode
UNIT_BYTES = 1
RPC_GET_VOLUME_STATS, RPC_VOLUME_MOUNT_GROUP = 2, 6
MODE_SINGLE_NODE_WRITER, MODE_SINGLE_NODE_READER_ONLY, MODE_MULTI_NODE_READER_ONLY = 1, 2, 3
MODE_SINGLE_NODE_SINGLE_WRITER, MODE_SINGLE_NODE_MULTI_WRITER = 6, 7


def _message_classes(package: str, schema: Schema) -> dict[str, type[Any]]:
    """Create message classes in a separate pool. So they don't collide with a library that declares the same messages."""
    file = FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    for name, fields in schema.items():
        message = file.message_type.add(name=name)
        for field_name, field in fields.items():
            _add_field(message, field_name, field, package)
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(wrappers)
    pool.Add(file)
    found = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(found[name]) for name in schema}


def _add_field(message: DescriptorProto, name: str, field: Field, package: str) -> None:
    is_repeated = field.is_repeated or field.kind == MAP
    label = FieldDescriptorProto.LABEL_REPEATED if is_repeated else FieldDescriptorProto.LABEL_OPTIONAL
    added = message.field.add(name=name, number=field.number, label=label)
    if isinstance(field.kind, int):
        added.type = field.kind  # type: ignore[assignment]  # the stub has an enum
        return
    added.type = FieldDescriptorProto.TYPE_MESSAGE
    if field.kind == MAP:
        added.type_name = f".{package}.{message.name}.{_add_entry(message, name)}"
    else:
        added.type_name = field.kind if field.kind.startswith(".") else f".{package}.{field.kind}"


def _add_entry(message: DescriptorProto, name: str) -> str:
    """Add the entry message of a map of strings, and return its name.

    See "Backwards compatibility" of maps in protobuf.dev/programming-guides/proto3.
    """
    entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
    entry.options.map_entry = True
    for field_name, number in (("key", 1), ("value", 2)):
        entry.field.add(name=field_name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL, type=STRING)
    return entry.name


CSI = _message_classes("csi.v1", _CSI)
REGISTRATION = _message_classes("pluginregistration", _REGISTRATION)
