"""Random mutations of a file's bytes, and of the fields of its format."""

import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random, bytes], bytes]
"""Maps a file, a generator, and another file of its kind to a mutated file."""

EXTREMES = (0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
EXTREMES = (*EXTREMES, 2**14, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
TEXTS = ("", " ", "\0", "é", "../../x", "1e999", "-1", "nan", "inf", "0x10", "=1+1", '"', ",", "\n")
TEXTS = (*TEXTS, "١", "1_0", "9" * 400, "a" * 5000, "\ud800".encode(errors="surrogatepass").hex())


def flip_bits(content: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(content: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 2, 4])):
        value = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)])
        changed[rng.randrange(len(changed))] = value
    return bytes(changed)


def cut(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def leave_out(content: bytes, rng: random.Random, other: bytes) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice([1, 4, 16, 200]) :]


def repeat(content: bytes, rng: random.Random, other: bytes) -> bytes:
    start = rng.randrange(len(content))
    piece = content[start : start + rng.choice([1, 4, 16, 200])]
    return content[:start] + piece * rng.choice([2, 3, 50]) + content[start + len(piece) :]


def splice(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]


def set_number(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Write an extreme binary number of two, four or eight bytes, of either order."""
    form = rng.choice(["H", "I", "Q"])
    size = struct.calcsize(form)
    number = rng.choice(EXTREMES) % 2 ** (8 * size)
    at = rng.randrange(max(1, len(content) - size))
    return content[:at] + struct.pack(rng.choice("<>") + form, number) + content[at + size :]


def set_digits(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Replace a decimal number by an extreme one."""
    found = list(re.finditer(rb"-?[0-9]+(\.[0-9]+)?", content))
    if not found:
        return set_bytes(content, rng, other)
    match = rng.choice(found)
    texts = [*map(str, EXTREMES), "1e308", "1e999", "NaN", "-Infinity", "0.5", "-0.0", "true"]
    new = rng.choice(texts).encode()
    return content[: match.start()] + new + content[match.end() :]


BYTES: tuple[Mutation, ...] = (flip_bits, set_bytes, cut, leave_out, repeat, splice, set_number)


def random_json(rng: random.Random) -> Any:
    """Return a JSON value that is seldom valid."""
    deep: Any = 0
    for _ in range(rng.choice([1, 3, 100])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    wide = [rng.choice(EXTREMES)] * rng.choice([0, 1, 2, 10, 3000])
    floats = [float("nan"), float("inf"), -0.0, 1e308, 5e-324, 0.5]
    options = [None, True, False, [], {}, deep, wide, rng.choice(EXTREMES), rng.choice(TEXTS)]
    return rng.choice([*options, rng.choice(floats), {rng.choice(TEXTS): wide}])


def container_keys(value: Any) -> list[tuple[Any, Any]]:
    """List every container with each of its keys or indices."""
    found, queue = [], [value]
    while queue:
        item = queue.pop()
        keys = (
            item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        )
        found += [(item, key) for key in keys]
        queue += [item[key] for key in keys]
    return found


def change_json(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Insert a random value, a duplicate key, or deeply nested brackets into JSON."""
    try:
        value = json.loads(content)
        spots = container_keys(value)
    except (ValueError, RecursionError):
        return set_digits(content, rng, other)
    kind = rng.randrange(8)
    if kind == 0:
        depth = rng.choice([900, 20_000])
        return content.replace(b"[", b"[" * depth, 1).replace(b"]", b"]" * depth, 1)
    if kind == 1:
        first = re.search(rb'"[^"]*": ?[^,{}\[\]]+', content)
        return content.replace(first[0], first[0] + b"," + first[0], 1) if first else content
    if kind == 2 or not spots:
        return json.dumps(random_json(rng)).encode()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        target, key = rng.choice(spots)
        if kind == 3 and isinstance(target, dict) and key in target:
            target[rng.choice([*TEXTS, "Cardiomegaly", "Edema", "img_size"])] = target.pop(key)
        elif kind == 4 and key in (target if isinstance(target, dict) else range(len(target))):
            del target[key]
        elif isinstance(target, dict) or key < len(target):
            target[key] = random_json(rng)
    return json.dumps(value).encode()


def change_cells(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Change, insert, delete or duplicate cells and rows of a CSV file."""
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(rng.choice([1, 1, 2, 4])):
        row = rng.choice(rows)
        at = rng.randrange(len(row)) if row else 0
        new = rng.choice([*TEXTS, *map(str, EXTREMES)]).encode()
        match rng.randrange(6):
            case 0 | 1 if row:
                row[at] = new
            case 2 if row:
                row[at] = b'"' + new + row[at] + rng.choice([b'"', b""])
            case 3 if row:
                del row[at]
            case 4:
                rows.insert(rng.randrange(len(rows)), list(row))
            case _:
                row.insert(at, new)
    return rng.choice([b"\n", b"\n", b"\r\n", b"\r"]).join(b",".join(row) for row in rows)


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return the types and bodies of a PNG's complete chunks."""
    found, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(chunks: list[tuple[bytes, bytes]], lengths: dict[int, int] | None = None) -> bytes:
    """Return a PNG of chunks with valid checksums; `lengths` overrides lengths by index."""
    content = b"\x89PNG\r\n\x1a\n"
    for number, (kind, body) in enumerate(chunks):
        length = (lengths or {}).get(number, len(body))
        content += struct.pack(">I", length) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    return content


def change_chunks(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Change a PNG's header, or a chunk's body, length, type or position; keep checksums valid."""
    chunks = png_chunks(content)
    if content[:4] != b"\x89PNG" or not chunks:
        return change_segments(content, rng, other)
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    lengths = {}
    match rng.randrange(6):
        case 0 | 1 if len(chunks[0][1]) == 13:
            header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            field = rng.randrange(7)
            number = rng.choice([*EXTREMES, rng.randrange(64), 20_000])
            header[field] = number % (2**32 if field < 2 else 256)
            chunks[0] = (chunks[0][0], struct.pack(">IIBBBBB", *header))
        case 2:
            lengths[at] = rng.choice(EXTREMES) % 2**32
        case 3:
            kinds = [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"zTXt", b"iTXt"]
            kinds += [b"eXIf", b"gAMA", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"tEXt", b"cHRM"]
            chunks[at] = (rng.choice(kinds), body)
        case 4:
            chunks.insert(rng.randrange(len(chunks)), chunks[at])
        case _ if body:
            chunks[at] = (kind, rng.choice(BYTES)(body, rng, body))
    return png_of(chunks, lengths)


def change_segments(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Change a JPEG's sizes or components, or a segment's length."""
    markers = [m.start() for m in re.finditer(rb"\xff[\xc0-\xc4\xda-\xdd\xe0-\xee]", content)]
    if not markers:
        return set_number(content, rng, other)
    at = rng.choice(markers) + 2 + rng.choice([0, 0, 3, 5, 7, 8, 9])
    number = rng.choice([*EXTREMES, 8000, 12_000, rng.randrange(64)]) % 2**16
    return content[:at] + struct.pack(">H", number) + content[at + 2 :]


def change_directory(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Change a field of a zip archive's central directory, local headers, or end record."""
    sign = rng.choice([b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"])
    found = [match.start() for match in re.finditer(re.escape(sign), content)]
    if not found:
        return set_number(content, rng, other)
    at = rng.choice(found) + rng.choice(range(4, 46, 2))
    form = rng.choice(["<H", "<I"])
    number = rng.choice([*EXTREMES, rng.randrange(300)])
    packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
    return content[:at] + packed + content[at + len(packed) :]


def change_header(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Change the JSON header of a safetensors file; its length is sometimes wrong."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= len(content) - 8:
        return set_number(content, rng, other)
    text = change_json(content[8 : 8 + length], rng, other)
    stated = len(text) if rng.random() < 0.9 else rng.choice(EXTREMES) % 2**64
    return stated.to_bytes(8, "little") + text + content[8 + length :]


def change_elements(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Change the length or the value of an element of an explicit-VR DICOM file."""
    found = list(re.finditer(rb"[\x02\x08\x10\x18\x20\x28]\x00..([A-Z]{2})", content, re.DOTALL))
    if not found:
        return set_number(content, rng, other)
    match = rng.choice(found)
    long = match[1] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    at = match.end() + (2 if long else 0)
    form = "<I" if long else "<H"
    if rng.random() < 0.6:  # its value, two bytes of it: sizes, bits and samples are that long
        at, form = at + struct.calcsize(form), "<H"
    number = rng.choice([*EXTREMES, 3, 4, 16, 32, 64, 60_000])
    packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
    return content[:at] + packed + content[at + len(packed) :]
