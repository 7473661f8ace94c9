"""Registered means tested: every installed architecture passes the whole suite."""

import pytest

from musubi import registry
from musubi.testing import conformance


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names())
def test_conforms(name, check, tmp_path):
    check(conformance.Subject(name, tmp_path))
