"""Files on disk become clips in buckets.

Read `sources.py` (which files, captions, controls), `media.py` (pictures and videos as arrays),
`frames.py` and `buckets.py` (which frames, of what size), then `clips.py`, which puts them together.
"""
