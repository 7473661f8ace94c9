"""How captions are cleaned before umT5 reads them."""

from musubi.encoders.umt5.network import clean


def test_captions_are_cleaned():
    assert clean("  a   cat &amp;amp; a\n dog ") == "a cat & a dog"
    assert clean("it’s “fine”") == 'it\'s "fine"'
    assert clean("") == ""
