import json
import re

import pytest

from pikfix.protocol.options import Options, OptionsError


@pytest.mark.parametrize("data_", [b"", b"  \n", b"{}"])
def test_no_options_are_the_defaults(data_):
    assert Options.from_json(data_) == Options(color=True, format=None, quality=95)


def test_options():
    given_ = {"color": False, "format": "webp", "quality": 7}
    assert Options.from_json(json.dumps(given_).encode()) == Options(False, "webp", 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('{"colour": true}', "option 'colour' is unknown: use color, format, quality"),
        ('{"color": 1}', "color must be true or false"),
        ('{"color": "no"}', "color must be true or false"),
        ('{"format": "gif"}', "format must be one of jpeg, png, tiff, webp"),
        ('{"format": ["png"]}', "format must be one of"),
        ('{"quality": 0}', "quality must be a whole number from 1 to 100"),
        ('{"quality": 101}', "quality must be"),
        ('{"quality": 9.5}', "quality must be"),
        ('{"quality": true}', "quality must be"),
        ('{"quality": null}', "quality must be"),
        ('{"depth": true}', "depth must be one of null, 8, 16, not True"),
        ('{"pages": "last"}', "pages must be one of all, first"),
        ('{"strength": NaN}', "strength must be a number from 0 to 1"),
        ('{"strength": true}', "strength must be a number from 0 to 1"),
        ('{"color": false, "keep_color": true}', "keep_color asks for colours and color for none"),
        ('{"color": false, "force_color": true}', "force_color asks for colours and color for"),
    ],
)
def test_wrong_options(text, message):
    with pytest.raises(OptionsError, match=re.escape(message)):
        Options.from_json(text.encode("latin-1"))


def test_what_is_sent_is_what_was_asked_for():
    assert json.loads(Options().to_json()) == {}, "a server of before refuses what it does not know"
    asked = Options(format="tiff", depth=16, color_strength=0.0)
    assert json.loads(asked.to_json()) == {"format": "tiff", "depth": 16, "color_strength": 0.0}
    assert Options.from_json(asked.to_json()) == asked
