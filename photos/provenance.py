"""What a machine did to a photo, said in the photo's own XMP packet.

``Iptc4xmpExt:DigitalSourceType`` is the field that picture libraries, search engines and the EU's
marking duty read; its values are those of IPTC's vocabulary. ``xmpMM:History`` gets an entry with
software, date and what was done, so that nothing of what the scanner wrote has to be replaced.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from xml.dom import minidom
from xml.parsers.expat import ExpatError

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
ENHANCED = _VOCABULARY + "algorithmicallyEnhanced"
"""Restored: corrected by an algorithm, its content kept."""
COMPOSITE = _VOCABULARY + "compositeWithTrainedAlgorithmicMedia"
"""Colorized: a photo with elements that a trained model made up."""
# What says more than another: a photo that was made up entirely does not become a scan by repair.
_MORE = {ENHANCED: 0, COMPOSITE: 2, _VOCABULARY + "compositeSynthetic": 1}
_MORE[_VOCABULARY + "trainedAlgorithmicMedia"] = 3

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_MEDIA = "http://ns.adobe.com/xap/1.0/mm/"
_EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
_BASIC = "http://ns.adobe.com/xap/1.0/"
_EVENT_PARTS = ("action", "softwareAgent", "when", "parameters")
_EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{_RDF}"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


@dataclasses.dataclass(frozen=True)
class Change:
    """What was done to a photo.

    Attributes:
        source_type: :data:`ENHANCED` or :data:`COMPOSITE`.
        agent: the software, with its version.
        day: when. Without the time: equal photos give equal files all day, so that a result can be
            compared with another, and the sidecar has the second.
        what: in words.
    """

    source_type: str
    agent: str
    day: datetime.date
    what: str


@dataclasses.dataclass(frozen=True)
class Event:
    """An entry of a packet's history; parts that it lacks are empty."""

    action: str
    agent: str
    when: str
    what: str


def software() -> str:
    """Return the name and version of this software."""
    try:
        return f"pikfix {importlib.metadata.version('pikfix')}"
    except importlib.metadata.PackageNotFoundError:  # run from a folder that is not installed
        return "pikfix"


def change_of(*, colorized: bool, model: str, day: datetime.date) -> Change:
    """Describe what was done to a photo that was restored, and colorized or not.

    Args:
        colorized: whether it got colours.
        model: version of the networks.
        day: when.
    """
    return Change(
        source_type=COMPOSITE if colorized else ENHANCED,
        agent=f"{software()} ({model})",
        day=day,
        what="restored and colorized by trained networks"
        if colorized
        else "restored by trained networks",
    )


def marked(packet: bytes, change: Change) -> tuple[bytes, list[str]]:
    """Enter a change into an XMP packet.

    Args:
        packet: in UTF-8; empty where there is none yet.
        change: what was done.

    Returns:
        The packet, and a warning where what was there cannot be read and was dropped.
    """
    document = _parsed(packet) if packet else None
    warnings = []
    if document is None:
        if packet:
            warnings.append("the XMP packet is damaged and was dropped")
        document = minidom.parseString(_EMPTY.encode())
    _enter(document, change)
    # Without the XML declaration that a document would begin with: a packet has none.
    return "".join(node.toxml() for node in document.childNodes).encode(), warnings


def source_type_of(packet: bytes) -> str | None:
    """Return the digital source type that a packet states; None without one."""
    document = _parsed(packet) if packet else None
    return _stated(_root(document)) or None if document is not None else None


def history_of(packet: bytes) -> list[Event]:
    """Return the history that a packet tells, the oldest first."""
    document = _parsed(packet) if packet else None
    if document is None:
        return []
    return [
        Event(*(_value(entry, _EVENT, name) for name in _EVENT_PARTS))
        for history in _properties(_root(document), _MEDIA, "History")
        for entry in history.getElementsByTagNameNS(_RDF, "li")
    ]


def _parsed(packet: bytes) -> minidom.Document | None:
    # XMP has no document type, and so no entities that could grow.
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        return None
    try:
        document = minidom.parseString(packet)
        document.toxml()
    except (ExpatError, ValueError, RecursionError):
        return None
    return document if document.getElementsByTagNameNS(_RDF, "RDF") else None


def _root(document: minidom.Document) -> minidom.Element:
    return document.getElementsByTagNameNS(_RDF, "RDF")[0]


def _enter(document: minidom.Document, change: Change) -> None:
    root = _root(document)
    rdf = f"{root.prefix}:" if root.prefix else ""
    block = document.createElementNS(_RDF, f"{rdf}Description")
    if not rdf:
        block.setAttribute("xmlns:rdf", _RDF)  # attributes have no default namespace
    attribute = rdf or "rdf:"
    # All descriptions of a packet are about one resource, by whatever name.
    about = next((one.getAttributeNS(_RDF, "about") for one in _described(root)), "")
    block.setAttributeNS(_RDF, f"{attribute}about", about)
    kinds = (_stated(root), change.source_type)
    when = change.day.isoformat()
    for uri, prefix, name, value in (
        (_IPTC, "Iptc4xmpExt", "DigitalSourceType", max(kinds, key=lambda one: _MORE.get(one, -1))),
        (_BASIC, "xmp", "ModifyDate", when),
        (_BASIC, "xmp", "MetadataDate", when),
    ):
        _remove(root, uri, name)
        block.setAttribute(f"xmlns:{prefix}", uri)
        _append(block, f"{prefix}:{name}", value)
    entry = _append(_history(root, block, rdf), f"{rdf}li")
    entry.setAttribute(f"{attribute}parseType", "Resource")
    entry.setAttribute("xmlns:stEvt", _EVENT)
    if not rdf:
        entry.setAttribute("xmlns:rdf", _RDF)
    values = ("edited", change.agent, when, change.what)
    for name, value in zip(_EVENT_PARTS, values, strict=True):
        _append(entry, f"stEvt:{name}", value)
    root.appendChild(block)


def _history(root: minidom.Element, block: minidom.Element, rdf: str) -> minidom.Element:
    """Return the list that holds the history, made in ``block`` where there is none."""
    for history in _properties(root, _MEDIA, "History"):
        found = history.getElementsByTagNameNS(_RDF, "Seq")
        if found:
            return found[0]
    _remove(root, _MEDIA, "History")
    block.setAttribute("xmlns:xmpMM", _MEDIA)
    return _append(_append(block, "xmpMM:History"), f"{rdf}Seq")


def _append(parent: minidom.Element, name: str, value: str | None = None) -> minidom.Element:
    document = parent.ownerDocument
    assert document is not None
    child = document.createElement(name)
    if value is not None:
        child.appendChild(document.createTextNode(value))
    parent.appendChild(child)
    return child


def _described(root: minidom.Element) -> list[minidom.Element]:
    """The descriptions of the photo itself, not those of ingredients within a property."""
    return [one for one in root.childNodes if isinstance(one, minidom.Element)]


def _properties(root: minidom.Element, uri: str, name: str) -> list[minidom.Element]:
    return [
        one
        for block in _described(root)
        for one in block.childNodes
        if isinstance(one, minidom.Element) and (one.namespaceURI, one.localName) == (uri, name)
    ]


def _remove(root: minidom.Element, uri: str, name: str) -> None:
    """Remove a property of the photo in both of its forms, as an element and as an attribute."""
    for block in _described(root):
        for element in _properties(root, uri, name):
            if element.parentNode is block:
                block.removeChild(element)
        if block.hasAttributeNS(uri, name):
            block.removeAttributeNS(uri, name)


def _stated(root: minidom.Element) -> str:
    found = (_value(block, _IPTC, "DigitalSourceType") for block in _described(root))
    return next((one for one in found if one), "")


def _value(block: minidom.Element, uri: str, name: str) -> str:
    """The text of a property of a description or structure, in any of its forms; empty if none.

    It may be an attribute, an element, or an element that refers to a resource; a structure may
    lie in a description of its own.
    """
    inner = [
        one
        for one in block.childNodes
        if isinstance(one, minidom.Element)
        and (one.namespaceURI, one.localName) == (_RDF, "Description")
    ]
    for place in (block, *inner):
        if place.hasAttributeNS(uri, name):
            return place.getAttributeNS(uri, name)
        for one in place.childNodes:
            if isinstance(one, minidom.Element) and (one.namespaceURI, one.localName) == (
                uri,
                name,
            ):
                text = "".join(node.data for node in one.childNodes if hasattr(node, "data"))
                return text.strip() or one.getAttributeNS(_RDF, "resource")
    return ""
