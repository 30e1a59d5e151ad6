"""What was done to a photo, in XMP packets as other software writes them."""

import datetime
import xml.etree.ElementTree as ET

import pytest

from pikfix.photos.provenance import (
    COMPOSITE,
    ENHANCED,
    change_of,
    history_of,
    marked,
    source_type_of,
)

DAY = datetime.date(2026, 1, 2)
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
XMP = "{http://ns.adobe.com/xap/1.0/}"


def change(*, colorized):
    return change_of(colorized=colorized, model="compact-12345678", day=DAY)


def packet(body, about=""):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
        ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="{about}" xmlns:dc="http://purl.org/dc/elements/1.1/"'
        ' xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        ' xmlns:mm="http://ns.adobe.com/xap/1.0/mm/"'
        f' xmlns:ev="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"{body}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def stated(data):
    """All source types of a packet, by another reader of XML, as elements and attributes."""
    found = []
    for block in ET.fromstring(data).iter(f"{RDF}Description"):
        if IPTC + "DigitalSourceType" in block.attrib:
            found.append(block.attrib[IPTC + "DigitalSourceType"])
        found += [one.text for one in block.findall(IPTC + "DigitalSourceType")]
    return found


def test_a_photo_without_a_packet_gets_one():
    data, warnings = marked(b"", change(colorized=False))
    assert warnings == []
    assert stated(data) == [ENHANCED]
    assert data.startswith(b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    assert data.endswith(b'<?xpacket end="w"?>')
    (event,) = history_of(data)
    assert (event.action, event.when) == ("edited", "2026-01-02")
    assert event.agent.startswith("pikfix ")
    assert event.agent.endswith("(compact-12345678)")


@pytest.mark.parametrize(
    "body",
    [
        ">",
        ' e:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/print">',
        "><e:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/print"
        "</e:DigitalSourceType>",
    ],
)
def test_a_statement_is_made_once_in_any_form(body):
    data, warnings = marked(
        packet(body + "<dc:title>A &amp; B</dc:title>", "uuid:7"), change(colorized=True)
    )
    assert warnings == []
    assert stated(data) == [COMPOSITE]
    root = ET.fromstring(data)
    assert [one.text for one in root.iter("{http://purl.org/dc/elements/1.1/}title")] == ["A & B"]
    # One packet is about one resource.
    assert {one.attrib[RDF + "about"] for one in root.iter(f"{RDF}Description")} == {"uuid:7"}


@pytest.mark.parametrize(
    ("before", "colorized", "after"),
    [
        ("trainedAlgorithmicMedia", True, "trainedAlgorithmicMedia"),
        ("compositeWithTrainedAlgorithmicMedia", False, "compositeWithTrainedAlgorithmicMedia"),
        ("algorithmicallyEnhanced", True, "compositeWithTrainedAlgorithmicMedia"),
        ("negativeFilm", False, "algorithmicallyEnhanced"),
    ],
)
def test_what_says_more_stays(before, colorized, after):
    vocabulary = "http://cv.iptc.org/newscodes/digitalsourcetype/"
    data = packet(f' e:DigitalSourceType="{vocabulary}{before}">')
    assert source_type_of(marked(data, change(colorized=colorized))[0]) == vocabulary + after


def test_history_goes_on():
    old = (
        "><mm:History><rdf:Seq><rdf:li ev:action='created' ev:softwareAgent='Scanner 1'"
        " ev:when='2001-01-01'/></rdf:Seq></mm:History>"
    )
    data = packet(old)
    for _ in range(2):
        data, _ = marked(data, change(colorized=True))
    events = history_of(data)
    assert [one.action for one in events] == ["created", "edited", "edited"]
    assert (events[0].agent, events[0].when) == ("Scanner 1", "2001-01-01")
    assert data.count(b"History>") == 2  # one list, from its begin to its end
    dates = [one.text for one in ET.fromstring(data).iter(XMP + "ModifyDate")]
    assert dates == ["2026-01-02"]


def test_ingredients_keep_what_is_said_of_them():
    inner = (
        "><mm:Ingredients><rdf:Bag><rdf:li><rdf:Description"
        ' e:DigitalSourceType="x:print" xmp:ModifyDate="1999"/></rdf:li></rdf:Bag></mm:Ingredients>'
    )
    data, _ = marked(packet(inner), change(colorized=False))
    assert sorted(stated(data)) == sorted([ENHANCED, "x:print"])
    assert b"1999" in data
    assert source_type_of(data) == ENHANCED


@pytest.mark.parametrize(
    "damaged",
    [
        b"<x:xmpmeta",
        b"not XML at all <",
        b"<a/>",
        packet(">")[:-10],
        b'<!DOCTYPE a [<!ENTITY b "c">]>' + packet("><dc:title>&b;</dc:title>"),
        b"<a>" * 100_000 + b"</a>" * 100_000,
    ],
    ids=["begun", "text", "other", "cut", "entities", "deep"],
)
def test_a_damaged_packet_is_replaced_and_said_so(damaged):
    assert source_type_of(damaged) is None
    data, warnings = marked(damaged, change(colorized=False))
    assert warnings == ["the XMP packet is damaged and was dropped"]
    assert stated(data) == [ENHANCED]


def test_rdf_by_any_prefix():
    for old, new in ((b"rdf:", b"r:"), (b"rdf:RDF", b"RDF")):
        data = packet(">").replace(b"xmlns:rdf", b"xmlns:r" if new == b"r:" else b"xmlns:rdf")
        data = data.replace(old, new)
        if new == b"RDF":
            data = data.replace(
                b"<RDF", b'<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
            )
        data, warnings = marked(data, change(colorized=True))
        assert warnings == []
        assert stated(data) == [COMPOSITE]
        assert len(history_of(data)) == 1
