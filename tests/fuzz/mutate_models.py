"""Damaged checkpoints, safetensors and ONNX files, in containers that are whole again."""

from __future__ import annotations

import io
import json
import zipfile
from random import Random
from typing import Any

from mutate import FLOATS, INTEGERS, TEXTS, dump_json, mutate_bytes, mutate_value


def mutate_zip(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change, drop, rename or repeat members of a zip file, such as a checkpoint, and store them anew."""
    if random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    at = random.randrange(len(members))
    if random.randrange(2):  # the members that are no tensors decide most
        at = next((i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")), at)
    name, content = members[at]
    action = random.randrange(7)
    kind = zipfile.ZIP_STORED
    if action == 0:
        del members[at]
    elif action == 1:
        members[at] = name, content[: random.randrange(len(content) + 1)]
    elif action == 2:
        members.append((random.choice(("../x", "/x", name + "\ud7ff", "data.pkl", "a" * 3000)), content))
    elif action == 3:
        members[at] = name, bytes(random.choice((1 << 20, 1 << 26)))
        kind = zipfile.ZIP_DEFLATED
    else:
        members[at] = name, mutate_bytes(content, random)
    buffer = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", kind) as file:
        warnings.simplefilter("ignore")  # two members of one name
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def mutate_safetensors(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change values of the JSON header of a safetensors file."""
    if random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if (meta := header.get("__metadata__")) and random.randrange(2):
        _mutate_texts(meta, random)
        text = dump_json(header)
    else:
        text = dump_json(mutate_value(header, random))
    length = len(text) if random.randrange(10) else random.choice((0, 2**40, 2**64 - 1))
    return length.to_bytes(8, "little") + text + data[8 + size :]


def _mutate_texts(texts: dict[str, str], random: Random) -> None:
    """Change one of several texts that are JSON each."""
    key = random.choice(list(texts))
    try:
        texts[key] = dump_json(mutate_value(json.loads(texts[key]), random)).decode()
    except ValueError:
        texts[key] = random.choice(TEXTS)


def mutate_onnx(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change metadata, opset, names, attributes, shapes, types or external data of an ONNX file."""
    import onnx

    if random.randrange(5) == 0:
        return mutate_bytes(data, random, other)
    model = onnx.load_from_string(data)
    for _ in range(random.choice((1, 1, 1, 2))):
        random.choice((_onnx_metadata, _onnx_metadata, _onnx_field, _onnx_field, _onnx_external))(
            model, random
        )
    return model.SerializeToString()


def _onnx_metadata(model: Any, random: Random) -> None:
    texts = {entry.key: entry.value for entry in model.metadata_props}
    _mutate_texts(texts, random)
    if random.randrange(10) == 0:
        texts.pop(random.choice(list(texts)))
    del model.metadata_props[:]
    for key, value in texts.items():
        model.metadata_props.add(key=key, value=value.encode(errors="replace").decode())


def _onnx_field(model: Any, random: Random) -> None:
    """Change a field of any message, chosen on the way from the root."""
    message = model
    while True:
        fields = [
            pair for pair in message.ListFields() if pair[0].name not in ("metadata_props", "doc_string")
        ]
        if not fields:
            return
        field, value = random.choice(fields)
        if message is model and random.randrange(3):
            field, value = next(pair for pair in fields if pair[0].name == "graph")
        repeated = hasattr(value, "add") or hasattr(value, "append")
        if field.message_type is None:
            _onnx_scalar(message, field, value, repeated, random)
            return
        if not repeated:
            message = value
            continue
        index = random.randrange(len(value))
        if random.randrange(8) == 0:
            if random.randrange(2):
                del value[index]
            else:
                value.add().CopyFrom(value[index])
            return
        message = value[index]


def _onnx_scalar(message: Any, field: Any, value: Any, repeated: bool, random: Random) -> None:
    small = (*INTEGERS, 11, 12, 13, 21, 99, 3, 5, 7)
    new: Any
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT64, field.CPPTYPE_ENUM):
        new = random.choice(small)
        if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM):
            new = max(-(2**31), min(new, 2**31 - 1))
        elif field.cpp_type == field.CPPTYPE_UINT64:
            new = abs(new)
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        new = random.choice(FLOATS[:5])
    else:
        texts = (*filter(str.isprintable, TEXTS), "images", "Shape", "If", "Loop", "boxes")
        old = value[0] if repeated and len(value) else value
        new = random.choice(texts)
        if isinstance(old, bytes):
            new = mutate_bytes(old, random) if random.randrange(2) else new.encode()
    try:
        if repeated:
            if len(value) and random.randrange(3):
                value[random.randrange(len(value))] = new
            else:
                value.append(new)
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError):  # an enumeration that is closed
        message.ClearField(field.name)


def _onnx_external(model: Any, random: Random) -> None:
    """Have a tensor say that its data are elsewhere."""
    if not model.graph.initializer:
        return
    tensor = random.choice(model.graph.initializer)
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    places = "*/_ORT_MEM_ADDR_/*", "/etc/passwd", "../x", "m.onnx", "/dev/zero", "", "x" * 300, "weights.bin"
    entries = {
        "location": random.choice(places),
        "offset": str(random.choice((0, 4096, 140_000_000_000_000, -1, 2**63))),
        "length": str(random.choice((size, 0, -1, 2**40))),
    }
    for key, value in entries.items():
        if random.randrange(6):
            tensor.external_data.add(key=key, value=value)
