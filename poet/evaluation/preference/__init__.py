"""Human preference between systems: pairs of clips made into a study, a page that asks, and what the answers say.

`questions` are asked of every pair; `pairing` says who sees which pair, and which clip stands left; `clips` reads and
fits the files of the systems, `ruins` makes twins of clips that are worse for certain; `making` writes a `study`,
`server` asks, `answers` keeps what raters said; `analysis` counts it, by `strengths` and `agreement`.
"""
