"""What a service allows: sizes, rates, times.  Flags of `poet serve` set them."""

from __future__ import annotations

import dataclasses

from poet.spec import Spec, setting

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSpec(Spec):
    """The limits of a service; the defaults are judgement for one machine.

    max_queue, max_queue_per_key: jobs that wait at once.  rate_per_minute: requests that make something, of a key
    (or, without keys, of an address); bursts of as many are let through.
    max_body_mib: a JSON body or form without its files.  max_upload_mib: a file.  max_pixels: of a frame, before it is
    decoded.  max_media_seconds: of a file.  max_decoded_mib: all its frames as bytes.  intake_seconds, intake_mib: time
    and address space of the process that reads it.
    max_samples: of a job.  max_film_seconds: of a film, its opening included.  max_prompt: characters.
    memory_gib: of the worker: jobs that would take more are refused, or wait for others; 0 is nine tenths of what there
    is.
    max_deaths: worker processes that may die of a job.  grace_seconds: what runs at a stop has so long to end, and is
    queued again if it does not.
    keep_hours, keep_mib: ended jobs and uploads older than that are removed, and the oldest where files are larger.
    previews: whether the events of a job come with pictures of new frames, which cost a decoding of the clip each time.
    """

    max_queue: int = setting(1000, changes="nothing", at_least=1, at_most=10**6)
    max_queue_per_key: int = setting(1000, changes="nothing", at_least=1, at_most=10**6)
    rate_per_minute: float = setting(600.0, changes="nothing", above=0, at_most=1e6)
    max_body_mib: float = setting(1.0, changes="nothing", above=0, at_most=1024)
    max_upload_mib: float = setting(64.0, changes="nothing", above=0, at_most=65_536)
    max_pixels: int = setting(2**23, changes="nothing", at_least=1, at_most=2**27)
    max_media_seconds: float = setting(60.0, changes="nothing", above=0, at_most=86_400)
    max_decoded_mib: float = setting(1024.0, changes="nothing", above=0, at_most=2**20)
    intake_seconds: float = setting(60.0, changes="nothing", above=0, at_most=3600)
    intake_mib: int = setting(4096, changes="nothing", at_least=256, at_most=2**20)
    max_samples: int = setting(8, changes="nothing", at_least=1, at_most=4096)
    max_film_seconds: float = setting(120.0, changes="nothing", above=0, at_most=86_400)
    max_prompt: int = setting(4000, changes="nothing", at_least=1, at_most=10**6)
    memory_gib: float = setting(0.0, changes="nothing", at_least=0, at_most=10**6)
    max_deaths: int = setting(3, changes="nothing", at_least=1, at_most=100)
    grace_seconds: float = setting(30.0, changes="nothing", at_least=0, at_most=3600)
    keep_hours: float = setting(168.0, changes="nothing", above=0, at_most=10**6)
    keep_mib: float = setting(10_240.0, changes="nothing", above=0, at_most=2**40)
    previews: bool = setting(True, changes="nothing")
