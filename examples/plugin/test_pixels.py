"""The conformance suite, run on this package's architecture."""

import pytest

from musubi.testing import conformance


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_pixels_conforms(check, tmp_path):
    check(conformance.Subject("pixels", tmp_path))


@pytest.mark.parametrize("check", conformance.TASK_CHECKS, ids=lambda check: check.__name__)
def test_text_to_video_conforms(check, tmp_path):
    subject = conformance.Subject("pixels", tmp_path)
    check(subject, subject.architecture.task("t2v"))
