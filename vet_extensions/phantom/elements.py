"""A DICOM data set in the making, and its bytes: the few value representations that a phantom's file needs.

`phantom.headers` and `phantom.dicom` fill an `Elements`. A general library checks, converts and copies every value on
its way to the file, which took a tenth of an image's time; the values here are legal by construction, and the tests
compare the bytes with those that pydicom writes.
"""

import struct
from functools import lru_cache
from typing import cast

from pydicom.datadict import dictionary_VR, tag_for_keyword

Value = str | int | float | bytes | list[str] | list[int] | list[float] | list["Elements"]

PIXEL_DATA = 0x7FE00010

_NUMBERS = {"US": "H", "SS": "h", "UL": "I"}
_WITH_LONG_LENGTH = ("OB", "OW", "SQ")
"""Of the VRs used here, those with 32-bit lengths in explicit syntaxes (PS3.5 7.1.2)."""

_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_CODECS = {"": "latin-1", "ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}


class Elements:
    """Data elements by tag. Those with one VR in the dictionary are set by keyword, all others with `add`.

    Values: text or a number, or a list of them; bytes for OB and OW, in the file's byte order; a list of `Elements` for
    a sequence.
    """

    def __init__(self) -> None:
        self._by_tag: dict[int, tuple[str, Value]] = {}

    def __setitem__(self, keyword: str, value: Value) -> None:
        tag, vr = _known(keyword)
        self._by_tag[tag] = vr, value

    def __getitem__(self, keyword: str) -> Value:
        return self._by_tag[_known(keyword)[0]][1]

    def __contains__(self, keyword: str) -> bool:
        return _known(keyword)[0] in self._by_tag

    def sequence(self, keyword: str) -> list["Elements"]:
        """The items of a sequence, none where it is absent."""
        vr, value = self._by_tag.get(_known(keyword)[0], ("SQ", []))
        assert vr == "SQ", f"{keyword} is no sequence"
        return cast(list[Elements], value)

    def add(self, tag: int | str, vr: str, value: Value) -> None:
        """Set an element that the dictionary does not know, or (by keyword) one that it knows with several VRs."""
        self._by_tag[_tag(tag) if isinstance(tag, str) else tag] = vr, value

    def add_group_length(self, group: int) -> None:
        """Put (group,0000) before a group, which must be complete: its length in explicit little endian (PS3.5 7.2)."""
        members = Elements()
        members._by_tag = {tag: element for tag, element in self._by_tag.items() if tag >> 16 == group}
        self.add(group << 16, "UL", len(members.encoded()))

    def encoded(self, *, is_implicit_vr: bool = False, is_little_endian: bool = True) -> bytes:
        """The data set's bytes (PS3.5 7), with text in the data set's own SpecificCharacterSet."""
        character_set = str(self["SpecificCharacterSet"]) if "SpecificCharacterSet" in self else ""
        return self._encoded("<" if is_little_endian else ">", _CODECS[character_set], is_implicit_vr)

    def _encoded(self, order: str, codec: str, is_implicit_vr: bool) -> bytes:
        parts = []
        for tag, (vr, value) in sorted(self._by_tag.items()):
            if vr == "SQ":
                content = b"".join(_item(item, order, codec, is_implicit_vr) for item in cast(list[Elements], value))
            else:
                content = _value_bytes(vr, value, order, codec)
            # Encapsulated pixel data, and no other element here, is OB of undefined length (PS3.5 A.4).
            is_encapsulated = tag == PIXEL_DATA and vr == "OB"
            length = _UNDEFINED if is_encapsulated else len(content)
            group, element = tag >> 16, tag & 0xFFFF
            if is_implicit_vr:
                parts.append(struct.pack(order + "HHI", group, element, length))
            elif vr in _WITH_LONG_LENGTH:
                parts.append(struct.pack(order + "HH2sHI", group, element, vr.encode(), 0, length))
            else:
                parts.append(struct.pack(order + "HH2sH", group, element, vr.encode(), length))
            parts.append(content)
            if is_encapsulated:
                parts.append(struct.pack(order + "HHI", *_SEQUENCE_END, 0))
        return b"".join(parts)


@lru_cache(maxsize=512)
def _known(keyword: str) -> tuple[int, str]:
    """Tag and VR of a keyword."""
    tag = _tag(keyword)
    vr = dictionary_VR(tag)
    assert len(vr) == 2, f"{keyword} is '{vr}': say which with `add`"
    return tag, vr


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, f"{keyword} is no DICOM keyword"
    return tag


def _item(item: Elements, order: str, codec: str, is_implicit_vr: bool) -> bytes:
    content = item._encoded(order, codec, is_implicit_vr)
    return struct.pack(order + "HHI", *_ITEM, len(content)) + content


def _value_bytes(vr: str, value: Value, order: str, codec: str) -> bytes:
    """A value's bytes, padded to even length (PS3.5 6.2): binary values and UIDs with zero, text with a space."""
    values = value if isinstance(value, list) else [value]
    if vr in _NUMBERS:
        return struct.pack(order + _NUMBERS[vr] * len(values), *values)
    content = value if isinstance(value, bytes) else "\\".join(map(str, values)).encode(codec)
    if len(content) % 2:
        content += b"\0" if isinstance(value, bytes) or vr == "UI" else b" "
    return content
