"""Films of any length, sessions of editing, storyboards, chains of jobs.

All of it stands on `poet.sampling.generate.Generator`, one clip of the model after the other: `windows` says how a
film is cut into clips, `sampler` makes the next one of a film so far (`tail`), `folder` keeps what is made.
"""
