"""Changes to the bytes of a file, and to what its format says, drawn by a seeded generator."""

import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random, bytes], bytes]
"""From a file, chance, and another file of its kind to a changed file."""

EXTREMES = (0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
EXTREMES = (*EXTREMES, 2**14, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
TEXTS = ("", " ", "\0", "é", "../../x", "1e999", "-1", "nan", "inf", "0x10", "=1+1", '"', ",", "\n")
TEXTS = (*TEXTS, "١", "1_0", "9" * 400, "a" * 5000, "\ud800".encode(errors="surrogatepass").hex())


def flip_bits(content: bytes, chance: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8, 64])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def set_bytes(content: bytes, chance: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 2, 4])):
        value = chance.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, chance.randrange(256)])
        changed[chance.randrange(len(changed))] = value
    return bytes(changed)


def cut(content: bytes, chance: random.Random, other: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def leave_out(content: bytes, chance: random.Random, other: bytes) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.choice([1, 4, 16, 200]) :]


def repeat(content: bytes, chance: random.Random, other: bytes) -> bytes:
    start = chance.randrange(len(content))
    piece = content[start : start + chance.choice([1, 4, 16, 200])]
    return content[:start] + piece * chance.choice([2, 3, 50]) + content[start + len(piece) :]


def splice(content: bytes, chance: random.Random, other: bytes) -> bytes:
    return content[: chance.randrange(len(content))] + other[chance.randrange(len(other)) :]


def set_number(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Writes an extreme binary number of two, four or eight bytes, of either order."""
    form = chance.choice(["H", "I", "Q"])
    size = struct.calcsize(form)
    number = chance.choice(EXTREMES) % 2 ** (8 * size)
    at = chance.randrange(max(1, len(content) - size))
    return content[:at] + struct.pack(chance.choice("<>") + form, number) + content[at + size :]


def set_digits(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Writes an extreme number over one in decimal digits."""
    found = list(re.finditer(rb"-?[0-9]+(\.[0-9]+)?", content))
    if not found:
        return set_bytes(content, chance, other)
    match = chance.choice(found)
    texts = [*map(str, EXTREMES), "1e308", "1e999", "NaN", "-Infinity", "0.5", "-0.0", "true"]
    new = chance.choice(texts).encode()
    return content[: match.start()] + new + content[match.end() :]


BYTES: tuple[Mutation, ...] = (flip_bits, set_bytes, cut, leave_out, repeat, splice, set_number)


def odd_value(chance: random.Random) -> Any:
    """Returns a JSON value that is seldom the wanted one."""
    deep: Any = 0
    for _ in range(chance.choice([1, 3, 100])):
        deep = [deep] if chance.random() < 0.5 else {"a": deep}
    wide = [chance.choice(EXTREMES)] * chance.choice([0, 1, 2, 10, 3000])
    floats = [float("nan"), float("inf"), -0.0, 1e308, 5e-324, 0.5]
    options = [None, True, False, [], {}, deep, wide, chance.choice(EXTREMES), chance.choice(TEXTS)]
    return chance.choice([*options, chance.choice(floats), {chance.choice(TEXTS): wide}])


def places(value: Any) -> list[tuple[Any, Any]]:
    """Returns every container with every key, or index, in it."""
    found, queue = [], [value]
    while queue:
        item = queue.pop()
        keys = (
            item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        )
        found += [(item, key) for key in keys]
        queue += [item[key] for key in keys]
    return found


def change_json(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Puts an odd value, a second key of one name, or a nest of brackets into JSON."""
    try:
        value = json.loads(content)
        spots = places(value)
    except (ValueError, RecursionError):
        return set_digits(content, chance, other)
    kind = chance.randrange(8)
    if kind == 0:
        depth = chance.choice([900, 20_000])
        return content.replace(b"[", b"[" * depth, 1).replace(b"]", b"]" * depth, 1)
    if kind == 1:
        first = re.search(rb'"[^"]*": ?[^,{}\[\]]+', content)
        return content.replace(first[0], first[0] + b"," + first[0], 1) if first else content
    if kind == 2 or not spots:
        return json.dumps(odd_value(chance)).encode()
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        target, key = chance.choice(spots)
        if kind == 3 and isinstance(target, dict) and key in target:
            target[chance.choice([*TEXTS, "Cardiomegaly", "Edema", "img_size"])] = target.pop(key)
        elif kind == 4 and key in (target if isinstance(target, dict) else range(len(target))):
            del target[key]
        elif isinstance(target, dict) or key < len(target):
            target[key] = odd_value(chance)
    return json.dumps(value).encode()


def change_cells(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Changes, swaps, drops or doubles cells and rows of a CSV file."""
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(chance.choice([1, 1, 2, 4])):
        row = chance.choice(rows)
        at = chance.randrange(len(row)) if row else 0
        new = chance.choice([*TEXTS, *map(str, EXTREMES)]).encode()
        match chance.randrange(6):
            case 0 | 1 if row:
                row[at] = new
            case 2 if row:
                row[at] = b'"' + new + row[at] + chance.choice([b'"', b""])
            case 3 if row:
                del row[at]
            case 4:
                rows.insert(chance.randrange(len(rows)), list(row))
            case _:
                row.insert(at, new)
    return chance.choice([b"\n", b"\n", b"\r\n", b"\r"]).join(b",".join(row) for row in rows)


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Returns the kinds and bodies of a PNG's chunks, as far as it has them whole."""
    found, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(chunks: list[tuple[bytes, bytes]], lengths: dict[int, int] | None = None) -> bytes:
    """Returns a PNG of chunks with right checksums; `lengths` lies about some by number."""
    content = b"\x89PNG\r\n\x1a\n"
    for number, (kind, body) in enumerate(chunks):
        length = (lengths or {}).get(number, len(body))
        content += struct.pack(">I", length) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    return content


def change_chunks(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Changes a PNG's header, a chunk's body, length, kind or place, and mends the checksums."""
    chunks = png_chunks(content)
    if content[:4] != b"\x89PNG" or not chunks:
        return change_segments(content, chance, other)
    at = chance.randrange(len(chunks))
    kind, body = chunks[at]
    lengths = {}
    match chance.randrange(6):
        case 0 | 1 if len(chunks[0][1]) == 13:
            header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            field = chance.randrange(7)
            number = chance.choice([*EXTREMES, chance.randrange(64), 20_000])
            header[field] = number % (2**32 if field < 2 else 256)
            chunks[0] = (chunks[0][0], struct.pack(">IIBBBBB", *header))
        case 2:
            lengths[at] = chance.choice(EXTREMES) % 2**32
        case 3:
            kinds = [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"zTXt", b"iTXt"]
            kinds += [b"eXIf", b"gAMA", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"tEXt", b"cHRM"]
            chunks[at] = (chance.choice(kinds), body)
        case 4:
            chunks.insert(chance.randrange(len(chunks)), chunks[at])
        case _ if body:
            chunks[at] = (kind, chance.choice(BYTES)(body, chance, body))
    return png_of(chunks, lengths)


def change_segments(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Changes a JPEG's sizes or components, or a segment's length."""
    markers = [m.start() for m in re.finditer(rb"\xff[\xc0-\xc4\xda-\xdd\xe0-\xee]", content)]
    if not markers:
        return set_number(content, chance, other)
    at = chance.choice(markers) + 2 + chance.choice([0, 0, 3, 5, 7, 8, 9])
    number = chance.choice([*EXTREMES, 8000, 12_000, chance.randrange(64)]) % 2**16
    return content[:at] + struct.pack(">H", number) + content[at + 2 :]


def change_directory(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Changes a field of a zip archive's directory, of an entry's own header, or of its end."""
    sign = chance.choice([b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"])
    found = [match.start() for match in re.finditer(re.escape(sign), content)]
    if not found:
        return set_number(content, chance, other)
    at = chance.choice(found) + chance.choice(range(4, 46, 2))
    form = chance.choice(["<H", "<I"])
    number = chance.choice([*EXTREMES, chance.randrange(300)])
    packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
    return content[:at] + packed + content[at + len(packed) :]


def change_header(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Changes the JSON header of a safetensors file and mends its length, or lies about it."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= len(content) - 8:
        return set_number(content, chance, other)
    text = change_json(content[8 : 8 + length], chance, other)
    stated = len(text) if chance.random() < 0.9 else chance.choice(EXTREMES) % 2**64
    return stated.to_bytes(8, "little") + text + content[8 + length :]


def change_elements(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Changes the length, or the value, of an element of a DICOM file of explicit types."""
    found = list(re.finditer(rb"[\x02\x08\x10\x18\x20\x28]\x00..([A-Z]{2})", content, re.DOTALL))
    if not found:
        return set_number(content, chance, other)
    match = chance.choice(found)
    long = match[1] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    at = match.end() + (2 if long else 0)
    form = "<I" if long else "<H"
    if chance.random() < 0.6:  # its value, two bytes of it: sizes, bits and samples are that long
        at, form = at + struct.calcsize(form), "<H"
    number = chance.choice([*EXTREMES, 3, 4, 16, 32, 64, 60_000])
    packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
    return content[:at] + packed + content[at + len(packed) :]
