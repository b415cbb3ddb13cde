"""Studies of preference: their designs, the server, and what answers come to."""

from __future__ import annotations

import collections
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poet import cli, media
from poet.evaluation.preference import (
    agreement,
    analysis,
    answers,
    clips,
    making,
    pairing,
    ruins,
    server,
    strengths,
    study,
)
from poet.evaluation.preference.questions import LEFT, QUESTIONS, RIGHT, TIE
from poet.evaluation.preference.strengths import Vote
from poet.evaluation.preference.study import CHECK, PAIR, TRAINING, Study, Trial
from poet.spec import UserError

FORMATS = {"ours": (32, 32, 8, 9), "theirs": (48, 64, 12, 13)}


def write_clips(folder: Path, height: int, width: int, rate_hz: float, frames: int, count: int = 3) -> None:
    """A bright square that moves over a ground of its own level."""
    folder.mkdir()
    for place in range(count):
        video = np.full((frames, height, width, 3), 30 + 40 * place, np.uint8)
        for t in range(frames):
            video[t, 8:20, 2 * t % (width - 12) :][:, :12] = 255
        media.write_mp4(folder / f"{place:03d}.mp4", video, rate_hz)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("systems")
    for name, form in FORMATS.items():
        write_clips(root / name, *form)
    lines = [{"file": f"{place:03d}.mp4", "caption": f"a square, {place}"} for place in range(3)]
    (root / "ours" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "theirs" / "broken.mp4").write_bytes(b"no film")
    (root / "ours" / "broken.mp4").write_bytes((root / "ours" / "000.mp4").read_bytes())
    media.write_mp4(root / "ours" / "extra.mp4", np.zeros((9, 32, 32, 3), np.uint8), 8.0)
    return [str(root / name) for name in FORMATS]


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "study"
    questions = [name for name, question in QUESTIONS.items() if not question.needs_prompt]
    wanted = making.Wanted(raters=2, checks=2, training=3, questions=questions)
    making.make(folders, wanted, making.claim(str(out), folders, False))
    return out


# ------------------------------------------------------------------------------------------- designs


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(2, 4), st.integers(1, 6), st.integers(0, 12), st.integers(0, 99))
def test_a_design_is_balanced(names: int, systems: int, raters: int, per_rater: int, seed: int):
    called = [f"s{i}" for i in range(systems)]
    found = pairing.design([f"n{i}" for i in range(names)], called, raters, per_rater, np.random.default_rng(seed))
    every = names * systems * (systems - 1) // 2
    count = min(per_rater or every, every)
    assert [len(views) for views in found] == [count] * raters
    seen = collections.Counter(view.pair for views in found for view in views)
    assert max(seen.values()) - min([seen[p] for p in seen] + [0] * (len(seen) < every)) <= 1
    for views in found:
        assert len({view.pair for view in views}) == count
        columns = collections.Counter((view.pair.first, view.pair.second) for view in views)
        assert max(columns.values()) - min(columns.values()) <= 1
    flips = collections.defaultdict(list)
    for views in found:
        for view in views:
            flips[view.pair].append(view.is_flipped)
    if count == every:
        assert all(abs(2 * sum(f) - len(f)) <= 1 for f in flips.values())
        assert all(abs(2 * sum(v.is_flipped for v in views) - count) <= systems * (systems - 1) / 2 for views in found)


@given(st.integers(1, 30), st.integers(0, 8), st.integers(0, 99))
def test_checks_stand_among_the_pairs_and_never_first(views: int, checks: int, seed: int):
    order = pairing.with_checks(views, checks, np.random.default_rng(seed))
    assert [at for at in order if at is not None] == list(range(views))
    assert order.count(None) == checks and order[0] == 0


def test_a_twin_is_worse_and_nothing_else():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (5, 8, 8, 3), np.uint8)
    twins = {name: ruin.apply(video, rng) for name, ruin in ruins.RUINS.items()}
    assert all(twin.shape == video.shape and twin.dtype == np.uint8 for twin in twins.values())
    assert not any(np.array_equal(twin, video) for twin in twins.values())
    assert ruins.motion(twins["frozen"]) == 0 and (twins["frozen"] == video[0]).all()
    assert sorted(map(bytes, twins["shuffled"])) == sorted(map(bytes, video))
    assert all(set(ruin.decides) <= set(QUESTIONS) for ruin in ruins.RUINS.values())


# -------------------------------------------------------------------------------------------- making


def test_clips_are_brought_to_one_area_and_rate_and_names_are_hidden(made: Path):
    found = study.read(made)
    assert found.systems == ("ours", "theirs") and found.made["rate_hz"] == pytest.approx(8.0, abs=0.01)
    rates = set()
    for file in (made / "page" / "clips").iterdir():
        one = clips.measure(file)
        assert abs(one.height * one.width / 1024 - 1) < 0.1
        rates.add(round(one.rate_hz, 1))
    assert rates == {8.0}
    page = "".join(p.read_text() for p in (made / "page").iterdir() if p.is_file())
    assert "ours" not in page.replace("yours", "").replace("of ours sends", "") and "theirs" not in page
    assert set(found.made["unpaired"]) == {"ours"} and "broken.mp4" in "".join(found.made["unreadable"].values())
    assert any("12" in how for how in found.made["fitted"])


def test_every_rater_has_pairs_checks_and_practice_with_sides_that_differ(made: Path):
    found = study.read(made)
    kinds = [collections.Counter(found.trials[t].kind for t in trials) for trials in found.raters]
    assert kinds == [{PAIR: 3, CHECK: 2, TRAINING: 3}] * 2
    assert [found.trials[t].kind for t in found.raters[0][:3]] == [TRAINING] * 3
    lefts = [{t.name: t.left for n in trials if (t := found.trials[n]).kind == PAIR} for trials in found.raters]
    assert all(lefts[0][name] != lefts[1][name] for name in lefts[0])
    public = found.public()["trials"]
    assert {n for n, trial in public.items() if "hint" in trial} == {
        n for n, trial in found.trials.items() if trial.kind == TRAINING
    }


def test_the_same_seed_makes_the_same_study(folders, made: Path, tmp_path: Path):
    found = study.read(made)
    wanted = making.Wanted(**found.made["wanted"])
    again = making.make(folders, wanted, making.claim(str(tmp_path / "again"), folders, False))
    assert (again.id, again.trials, again.raters) == (found.id, found.trials, found.raters)


def test_clips_are_paired_by_their_prompts(tmp_path: Path):
    names = {"a": ["one", "two", "two"], "b": ["two", "one", "three"]}
    systems = [
        clips.System(
            name=name, files={str(i): tmp_path / f"{name}{i}" for i in range(3)}, prompts=dict(zip("012", texts))
        )
        for name, texts in names.items()
    ]
    with pytest.raises(UserError, match="--by=prompt"):
        clips.shared(systems)
    found, shared, left = clips.shared(systems, clips.PROMPT)
    assert shared == ["one #1", "two #1"] and left == {"a": ["two #2"], "b": ["three #1"]}
    assert found[0].files["two #1"].name == "a1" and found[1].files["two #1"].name == "b0"


def test_mistakes_of_making(folders, tmp_path: Path, made: Path, capsys):
    (tmp_path / "empty").mkdir()
    write_clips(tmp_path / "other", 16, 16, 8, 3, count=1)
    os.rename(tmp_path / "other/000.mp4", tmp_path / "other/elsewhere.mp4")
    cases = [
        ([folders[0]], "two systems"),
        ([folders[0], str(tmp_path / "nowhere")], "no such folder"),
        ([folders[0], str(tmp_path / "empty")], "no clips"),
        ([folders[0], str(tmp_path / "other")], "share no name"),
        ([*folders, "--names=a,a"], "different names"),
        ([*folders, "--questions=beauty"], "beauty"),
        ([*folders, "--questions=text_fidelity"], "captions.jsonl"),
        ([*folders, "--port=80"], "--port is a flag of serve"),
    ]
    for arguments, words in cases:
        assert cli.main(["prefer", "make", *arguments, f"--out={tmp_path / 'out'}"]) == cli.EXIT_USER
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_study_of_another_version_or_a_damaged_one_is_refused(folders, tmp_path: Path):
    out = tmp_path / "study"
    made = making.make(folders, making.Wanted(raters=1, clips=1), making.claim(str(out), folders, False))
    with pytest.raises(UserError, match="no study"):
        study.read(tmp_path)
    text = (out / study.KEY).read_text()
    (out / study.KEY).write_text(text + " ")
    with pytest.raises(UserError, match="altered"):
        study.read(out)
    (out / study.KEY).write_text(text.replace('"format": 1', '"format": 2', 1))
    from poet.runs import manifest

    (out / manifest.NAME).unlink()
    manifest.write(out, {"kind": making.KIND})
    with pytest.raises(UserError, match="format 2"):
        study.read(out)
    (out / answers.FILE).write_text("")
    with pytest.raises(UserError, match="holds answers"):
        making.claim(str(out), folders, True)
    assert made.made["clips"] == 1


# -------------------------------------------------------------------------------------------- server


@pytest.fixture
def served(made: Path, tmp_path: Path):
    """A server of a copy of the study."""
    import shutil

    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    with server.Server(folder, study.read(folder)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def ask(served: server.Server, method: str, path: str, body: object = None, **headers: str):
    connection = http.client.HTTPConnection(server.HOST, served.server_port, timeout=10)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, data, {**kind, **{k.replace("_", "-"): v for k, v in headers.items()}})
    reply = connection.getresponse()
    return reply.status, reply.read(), reply.headers


def test_the_server_gives_the_page_and_nothing_beside_it(served):
    assert b"<title>" in ask(served, "GET", "/")[1]
    clip = next(name for name in served.served if name.endswith(".mp4"))
    whole = ask(served, "GET", f"/{clip}")
    part = ask(served, "GET", f"/{clip}", Range="bytes=4-11")
    assert whole[0] == 200 and part[0] == 206 and part[1] == whole[1][4:12]
    assert part[2]["Content-Range"] == f"bytes 4-11/{len(whole[1])}"
    assert ask(served, "GET", f"/{clip}", Range=f"bytes={len(whole[1])}-")[0] == 416
    for path in ("/../key.json", "/key.json", "/%2e%2e/key.json", "/answers.jsonl", "/MANIFEST"):
        assert ask(served, "GET", path)[0] == 404
    assert ask(served, "GET", "/", Host="evil.example")[0] == 403
    assert ask(served, "GET", "/", Origin="http://evil.example")[0] == 403


def test_the_server_keeps_valid_answers_alone(served):
    trial = served.study.raters[0][0]
    good = {"study": served.study.id, "rater": 1, "trial": trial, "question": "video_quality", "answer": LEFT}
    assert ask(served, "POST", server.API, good)[0] == 200
    assert ask(served, "POST", server.API, good | {"answer": TIE})[0] == 200
    strange = [{"study": "x"}, {"rater": 3}, {"rater": True}, {"trial": "t9"}, {"question": "q"}, {"answer": "both"}]
    for wrong in strange:
        status, body, _ = ask(served, "POST", server.API, good | wrong)
        assert status == 400 and json.loads(body)["error"]
    assert ask(served, "POST", server.API, b"{")[0] == 400 and ask(served, "POST", server.API, [1])[0] == 400
    assert ask(served, "POST", server.API, bytes(5000))[0] == 413
    assert json.loads(ask(served, "GET", f"{server.API}?rater=1")[1]) == {"answers": {trial: {"video_quality": TIE}}}
    assert json.loads(ask(served, "GET", f"{server.API}?rater=2")[1]) == {"answers": {}}
    assert ask(served, "GET", f"{server.API}?rater=0")[0] == 400
    book = answers.read(served.study, [served.page.parent / answers.FILE])
    assert (book.lines, len(book.answers), book.refused) == (2, 1, {})


@pytest.mark.slow
def test_a_kill_loses_no_answer_that_was_accepted(made: Path, tmp_path: Path):
    import shutil

    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    command = [sys.executable, "-m", "poet.cli", "prefer", "serve", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().split()[0]
    found, kept = study.read(folder), 0
    fake = type("Fake", (), {"server_port": int(address.rsplit(":", 1)[1].strip("/"))})
    for trial, question in itertools.product(found.raters[0], found.questions):
        line = {"study": found.id, "rater": 1, "trial": trial, "question": question, "answer": RIGHT}
        kept += ask(fake, "POST", server.API, line)[0] == 200
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(folder / answers.FILE, "ab") as file:
        file.write(b'{"study": "cut sho')
    book = answers.read(found, [folder / answers.FILE])
    assert len(book.answers) == kept == len(found.raters[0]) * len(found.questions) and len(book.refused) == 1
    with server.Server(folder, found) as again:
        again.keep({"rater": 2, "trial": found.raters[1][0], "question": found.questions[0], "answer": LEFT})
    assert len(answers.read(found, [folder / answers.FILE]).answers) == kept + 1


# ------------------------------------------------------------------------------------------ analysis


def votes(strengths_S, raters: int, names: int, rng, tie: float = 0.0) -> list[Vote]:
    """Answers of raters who prefer by these strengths."""
    found = []
    for rater, name, (a, b) in itertools.product(
        range(raters), range(names), itertools.combinations(range(len(strengths_S)), 2)
    ):
        p = 1 / (1 + np.exp(strengths_S[b] - strengths_S[a]))
        won = 0.5 if rng.random() < tie else float(rng.random() < p)
        found.append(Vote(rater=rater, name=str(name), first=a, second=b, won=won))
    return found


def test_known_strengths_are_recovered_and_lie_in_their_intervals():
    true_S = np.array([0.9, 0.1, -0.2, -0.8])
    sample = votes(true_S, 8, 80, np.random.default_rng(1))
    found_S = strengths.fit(strengths.wins(sample, 4))
    low_S, high_S = np.quantile(strengths.bootstrap(sample, 4), [0.025, 0.975], axis=0)
    assert np.abs(found_S - true_S).max() < 0.15
    assert ((low_S < true_S) & (true_S < high_S)).all() and (high_S - low_S < 0.6).all()


def test_two_strengths_are_the_logarithm_of_the_odds():
    sample = [
        Vote(rater=0, name=str(i), first=0, second=1, won=w) for i, w in enumerate([1.0] * 30 + [0.0] * 9 + [0.5])
    ]
    a, b = strengths.fit(strengths.wins(sample, 2))
    assert a - b == pytest.approx(np.log(31 / 10), abs=1e-6)
    assert np.isfinite(strengths.fit(strengths.wins(sample[:30], 2))).all()


def brute_alpha(units: list[list[float]]) -> float:
    """Krippendorff's ordinal alpha by its definition: disagreement within pairs over that of all values."""
    values = sorted({v for unit in units for v in unit})
    total = {v: sum(unit.count(v) for unit in units) for v in values}

    def distance(a, b):
        low, high = sorted((a, b))
        between = sum(total[v] for v in values if low <= v <= high)
        return (between - (total[a] + total[b]) / 2) ** 2

    n = sum(total.values())
    within = sum(distance(a, b) / (len(u) - 1) for u in units for a, b in itertools.permutations(u, 2))
    across = sum(total[a] * (total[b] - (a == b)) * distance(a, b) for a in values for b in values) / (n - 1)
    return 1 - within / across


def test_alpha_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    sample = votes([0.8, -0.8], 5, 12, rng, tie=0.3)
    sample = [vote for vote in sample if rng.random() < 0.8]
    units = collections.defaultdict(list)
    for vote in sample:
        units[vote.name].append(vote.won)
    kept = [unit for unit in units.values() if len(unit) > 1]
    both = kept + [[1 - won for won in unit] for unit in kept]
    assert agreement.alpha(agreement.counts(sample)) == pytest.approx(brute_alpha(both), abs=1e-9)


def test_alpha_of_random_raters_is_near_zero_and_of_agreeing_ones_one():
    rng = np.random.default_rng(0)
    chance = agreement.summary(votes([0.0, 0.0], 6, 150, rng, tie=0.2))
    assert abs(chance["alpha"]) < 0.06 and chance["low"] < 0 < chance["high"] and chance["is_low"]
    agreed = [Vote(rater=r, name=str(n), first=0, second=1, won=1.0) for r in range(3) for n in range(5)]
    assert agreement.summary(agreed)["alpha"] == pytest.approx(1) and not agreement.summary(agreed)["is_low"]
    assert agreement.summary(agreed[:5])["alpha"] is None


def test_the_sign_test_is_exact_and_takes_a_majority_for_each_name():
    mine = [Vote(rater=0, name=str(i), first=0, second=1, won=w) for i, w in enumerate([1.0] * 9 + [0.0] + [0.5] * 4)]
    found = analysis.sign_test(mine)
    assert (found["for"], found["against"]) == (9, 1) and found["p"] == pytest.approx(22 / 1024)
    assert found["low"] == pytest.approx(0.55498, abs=1e-4) and found["high"] == pytest.approx(0.99747, abs=1e-4)
    thrice = [Vote(rater=r, name=v.name, first=0, second=1, won=v.won) for v in mine for r in range(3)]
    assert analysis.sign_test(thrice) == found
    assert analysis.sign_test(mine[-4:])["p"] == 1.0


def simulated(raters: int, pairs: int, checks: int) -> Study:
    """A study of which no clip exists."""
    trials = {}
    for number in range(pairs):
        sides = ("a", "b") if number % 2 else ("b", "a")
        trials[f"t{number}"] = Trial(
            kind=PAIR, name=str(number), prompt="", left=sides[0], right=sides[1], left_clip="", right_clip=""
        )
    for number in range(checks):
        ruin = ("frozen", "noise")[number % 2]
        trials[f"c{number}"] = Trial(
            kind=CHECK, name="c", prompt="", left="intact", right=ruin, left_clip="", right_clip=""
        )
    questions = ("video_quality", "motion_interestingness")
    return Study(
        id="x", systems=("a", "b"), questions=questions, trials=trials, raters=(tuple(trials),) * raters, made={}
    )


def write_answers(file: Path, found: Study, says) -> None:
    lines = [
        {"study": found.id, "rater": rater, "trial": t, "question": q, "answer": says(rater, found.trials[t], q)}
        for rater, trials in enumerate(found.raters, 1)
        for t in trials
        for q in found.questions
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_raters_who_fail_the_checks_are_left_out_and_counted(tmp_path: Path):
    """Rater 3 always says right; the others see the twins, and prefer `a`."""
    found = simulated(3, 10, 4)
    prefer = lambda trial, name: LEFT if trial.left == name else RIGHT
    says = lambda rater, trial, _: RIGHT if rater == 3 else prefer(trial, "a" if trial.kind == PAIR else "intact")
    write_answers(tmp_path / "a.jsonl", found, says)
    record = analysis.analyse(found, [tmp_path / "a.jsonl"])
    assert record["excluded"] == [3] and record["raters"]["3"]["passed"] == 0 and record["answers"] == 40
    (pair,) = record["questions"]["video_quality"]["pairs"]
    assert (pair["wins"], pair["ties"], pair["losses"]) == (20, 0, 0) and pair["sign_test"]["for"] == 10
    found_a = record["questions"]["video_quality"]["strengths"]
    assert found_a["a"]["low"] > 0 > found_a["b"]["high"] and record["left_share"] == 0.5
    assert "rater 3 is left out: 0 of 4" in analysis.text(record)
    everyone = analysis.analyse(found, [tmp_path / "a.jsonl"], least_passed=0.0)
    assert not everyone["excluded"] and everyone["answers"] == 60


def test_too_few_answers_and_strange_lines(tmp_path: Path):
    found, file = simulated(1, 2, 0), tmp_path / "a.jsonl"
    with pytest.raises(UserError, match="no answers yet"):
        analysis.analyse(found, [])
    line = {"study": "x", "rater": 1, "trial": "t0", "question": "video_quality", "answer": LEFT}
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="1 answers"):
        analysis.analyse(found, [file])
    more = [line | {"trial": "t1"}, line | {"study": "y"}, [], line | {"answer": TIE}]
    file.write_text("\n".join(map(json.dumps, [line, *more])) + '\n{"stu')
    record = analysis.analyse(found, [file])
    assert record["answers"] == 2 and len(record["refused"]) == 3 and "a.jsonl:6" in record["refused"]
    (pair,) = record["questions"]["video_quality"]["pairs"]
    assert (pair["ties"], pair["wins"] + pair["losses"]) == (1, 1), "the later answer counts"


def test_the_command_analyses_a_study(made: Path, tmp_path: Path, capsys):
    found, file, out = study.read(made), tmp_path / "answers_1.jsonl", tmp_path / "result.json"
    write_answers(file, found, lambda rater, trial, _: trial.intact if trial.kind == CHECK else LEFT)
    arguments = ["prefer", "analyse", str(made), f"--answers={file}", f"--out={out}"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "PREFERRED" in printed and "the left clip was preferred in 100%" in printed
    assert json.loads(out.read_text())["study"] == found.id
    assert cli.main(arguments) == cli.EXIT_USER and cli.main(["prefer", "analyse", str(made)]) == cli.EXIT_USER
