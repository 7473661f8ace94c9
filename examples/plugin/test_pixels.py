"""The conformance suite, run on this package's architecture."""

import pytest

from musubi.testing import conformance


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_pixels_conforms(check, tmp_path):
    check(conformance.Subject("pixels", tmp_path))
