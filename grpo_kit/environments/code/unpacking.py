"""Texts that a row holds compressed: base64 of zlib of a text, or of a pickled text, as LiveCodeBench has it.

A pickle is a program. Only the one that makes a single text is followed: its opcodes are read one by one
(`pickletools.genops`, which runs none), and any other opcode refuses the row.
"""

import base64
import binascii
import pickletools
import zlib

from grpo_kit.environments.code.column import LARGEST_SOURCE
from grpo_kit.environments.reading import Refused

_TEXT = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_NEUTRAL = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP")  # version, length, place in the memo, end


def unpack(packed: str, column: str) -> bytes:
    """The bytes behind base64 and zlib, at most `LARGEST_SOURCE` of them.

    >>> unpack("eJwzVDACAAEIAIQ=", "tests")
    b'1 2'
    """
    if len(packed) > LARGEST_SOURCE:
        raise Refused(
            "large tests", f"the column {column} has {len(packed):,} characters, and {LARGEST_SOURCE:,} are read"
        )
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(base64.b64decode(packed, validate=True), LARGEST_SOURCE)
    except (ValueError, binascii.Error, zlib.error):
        raise Refused("unreadable", f"the column {column} is not compressed as its form says") from None
    if decompressor.unconsumed_tail:
        raise Refused("large tests", f"the column {column} has more than {LARGEST_SOURCE:,} bytes when it is unpacked")
    if not decompressor.eof or decompressor.unused_data:
        raise Refused("unreadable", f"the column {column} is compressed and cut short, or something follows it")
    return content


def pack(text: str) -> str:
    """The base64 of the zlib of a text.

    >>> unpack(pack("é"), "x").decode()
    'é'
    """
    return base64.b64encode(zlib.compress(text.encode())).decode()


def read_pickled_text(content: bytes, column: str) -> str:
    """The text that a pickle of a single text holds; refused where the pickle does anything else.

    >>> import pickle
    >>> read_pickled_text(pickle.dumps('[{"input": "1"}]'), "tests")
    '[{"input": "1"}]'
    """
    texts, end = [], -1
    try:
        for opcode, argument, place in pickletools.genops(content):
            if opcode.name in _TEXT:
                texts.append(argument)
            elif opcode.name not in _NEUTRAL:
                raise Refused("pickle", f"the column {column} is a pickle with {opcode.name}; only a text is read")
            end = place
    except ValueError:  # an unknown opcode, or the end before its argument
        raise Refused("pickle", f"the column {column} is no whole pickle") from None
    if len(texts) != 1 or end != len(content) - 1:
        raise Refused("pickle", f"the column {column} is a pickle of something else than one text")
    return texts[0]
