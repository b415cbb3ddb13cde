"""Who may be in the worker at once, by what jobs are predicted to take of its memory."""

from __future__ import annotations

import dataclasses
import re

import pytest
from running import served
from stand_in import StandIn

from poet.server.memory import GIB, Ledger, Measured, Meter, Need
from poet.server.store import Store


@dataclasses.dataclass(frozen=True)
class Heavy(StandIn):
    """Jobs that say by their prompt how much they hold: 'own 1.5' is 1.5 GiB, 'kept 1' stays when they have ended."""

    def admit(self, asked, media):
        part, _, gib = asked.get("prompt", "").partition(" ")
        size = int(float(gib or 0) * GIB)
        need = Need(kept={"of " + gib: size}) if part == "kept" else Need(own=size)
        return dataclasses.replace(
            super().admit(asked, media), need=need, advice=lambda room: f"{room // GIB} would fit"
        )


@pytest.fixture
def client(tmp_path):
    with served(tmp_path / "store", Heavy(step_s=0.05), memory_gib=10.0) as found:
        yield found


def metric(client, name: str) -> float:
    return float(re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)[1])


# ------------------------------------------------------------------------------------- the ledger


def ledger(limit_gib: float = 10.0, held: int = 1) -> Ledger:
    found = Ledger(limit_gib)
    found.started(Measured(held * GIB, held * GIB))
    return found


def need(**gib: int) -> Need:
    kept = {"weights": gib.pop("kept", 0) * GIB}
    return Need(kept=kept, **{name: size * GIB for name, size in gib.items()})


def test_programs_run_one_after_the_other_and_a_batch_is_shared():
    job = need(kept=2, batch=3, own=1, passing=2)
    one = ledger()
    assert one.of([job]) == (1 + 2 + 3 + 1 + 2) * GIB and one.admits(job) and one.fits([job])
    assert one.of([job, job]) == one.of([job]) + GIB and one.fits([job, job]) and not one.fits([job] * 3)
    one.ended(Measured(3 * GIB, 8 * GIB), ["weights"])  # They are held now.
    assert one.of([job]) == (3 + 3 + 1 + 2) * GIB
    one.started(Measured(GIB, GIB))
    assert one.of([job]) == 9 * GIB


def test_what_never_fits_is_said_with_its_parts():
    said = ledger().refusal(need(kept=4, own=3, passing=5), "one sample would fit")
    assert "would take 13.00 GiB" in said and "4.00 for weights and programs" in said and "1.00 for the worker" in said
    assert "5.00 for its largest program" in said and "has 10.00: one sample would fit" in said and "batch" not in said


def test_without_a_limit_it_is_a_share_of_what_there_is():
    found = Ledger()
    whole = found.limit
    assert 0 < whole
    found.started(Measured(0, 0, there_are=100 * GIB))
    assert found.limit == 90 * GIB != whole


def test_peaks_count_from_the_start():
    meter = Meter()
    block = bytearray(256 * 2**20)
    high = meter.read()
    assert high.peak >= high.held >= len(block)
    del block
    meter.start()
    now = meter.read()
    assert now.peak - now.held < 64 * 2**20 and high.held - now.held > 200 * 2**20


# ------------------------------------------------------------------------------------ the service


def test_a_job_that_never_fits_is_refused_at_once(client):
    answer = client.post("/v1/jobs", json={"task": "text_to_video", "prompt": "own 12"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "too_large"
    assert "12.00 for its media" in error["message"] and "this service has 10.00: 9 would fit" in error["message"]
    assert client.get("/v1/jobs").json()["data"] == []
    assert 'poet_errors_total{kind="too_large"} 1.0' in client.get("/metrics").text


def test_jobs_that_fit_together_are_made_together_and_others_wait(client):
    alone, first, second = (client.make(prompt=f"own {gib}", steps=30) for gib in (6, 2, 5))
    client.until(first, "in_progress")  # Beside the first; the next fits with neither.
    assert client.job(alone)["status"] == "in_progress" and client.job(second)["status"] == "queued"
    assert 8 * GIB < metric(client, "poet_memory_predicted_bytes") < 9 * GIB
    assert client.until(second)["status"] == "completed" == client.until(alone)["status"]
    assert client.job(second)["started_at"] >= client.job(alone)["completed_at"]
    assert metric(client, "poet_memory_limit_bytes") == 10 * GIB
    assert 0 < metric(client, "poet_memory_measured_bytes") < GIB


def test_a_new_worker_makes_room_where_what_the_old_one_keeps_is_in_the_way(client, monkeypatch):
    assert client.until(client.make(prompt="kept 1"))["status"] == "completed"
    memory = client.service.memory
    memory.ended(Measured(7 * GIB, 7 * GIB), [])
    assert client.until(client.make(prompt="own 6"))["status"] == "completed"
    assert memory.of([]) < GIB and metric(client, "poet_worker_deaths_total") == 0


def test_a_waiting_job_that_fits_no_more_fails_with_the_numbers(tmp_path):
    """The store of a service with more memory."""
    with Store.opened(tmp_path / "store") as store:
        accepted = Heavy().admit({"task": "text_to_video", "prompt": "own 8", "seed": 1}, {})
        request = {"asked": {}, "memory": dataclasses.asdict(accepted.need), **accepted.request}
        job = store.add("job", "text_to_video", request, seed=1, batch_key=accepted.batch_key)
    with served(tmp_path / "store", Heavy(), memory_gib=4.0) as client:
        found = client.until(job.id)
        assert found["status"] == "failed" and found["error"]["code"] == "too_large"
        assert "8.00 for its media" in found["error"]["message"]
        assert client.until(client.make(seed=1))["status"] == "completed"
