"""Published protocols of evaluation, each a row of data (`presets`), and what carries them out.

`data` reads the folder that a user prepares, `clips` cuts files as a protocol asks, `sampling` makes the samples,
`run` scores them by the machinery of `poet score`; `standins` has data of the right shapes for dry runs.
"""
