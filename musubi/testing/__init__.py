"""For tests, here and in plugins: tiny twins of the released files, small media, and the conformance suite.

`twins` writes toy checkpoints in the released layouts, `media` draws images and videos,
`conformance` holds what every registered architecture must pass.
"""
