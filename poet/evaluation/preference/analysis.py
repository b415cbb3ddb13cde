"""`poet prefer analyse`: what the answers to a study say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from poet.evaluation import intervals
from poet.evaluation.preference import agreement, answers, strengths
from poet.evaluation.preference.answers import Book
from poet.evaluation.preference.questions import LEFT, TIE
from poet.evaluation.preference.ruins import RUINS
from poet.evaluation.preference.strengths import Vote
from poet.evaluation.preference.study import CHECK, PAIR, Study
from poet.evaluation.report import tables
from poet.spec import UserError

FORMAT = 1
# A rater counts who passes at least this share of the attention checks that were answered.
LEAST_PASSED = 0.75


def analyse(study: Study, files: Sequence[Path], least_passed: float = LEAST_PASSED) -> dict[str, Any]:
    """The record of a study's answers, as JSON holds it.

    Raises:
      UserError: no file, or fewer than two answers about pairs of raters who passed the checks.
    """
    if not files:
        raise UserError(f"the study has no answers yet ({answers.FILE}): `poet prefer serve` asks for them")
    book = answers.read(study, files)
    raters = {rater: _rater(study, book, rater, least_passed) for rater in sorted({key[0] for key in book.answers})}
    kept = {rater for rater, found in raters.items() if not found["is_excluded"]}
    by_question = {name: votes_of(study, book, name, kept) for name in study.questions}
    total = sum(map(len, by_question.values()))
    if total < 2:
        failed = len(raters) - len(kept)
        out = f"; {failed} raters failed the attention checks and are left out" if failed else ""
        raise UserError(f"the study has {total} answers about pairs of systems, at least two are needed{out}")
    return {
        "format": FORMAT,
        "study": study.id,
        "systems": list(study.systems),
        "answers": total,
        "refused": book.refused,
        "raters": {str(rater): found for rater, found in raters.items()},
        "excluded": [rater for rater in raters if rater not in kept],
        "least_passed": least_passed,
        "questions": {name: _question(study, votes) for name, votes in by_question.items() if votes},
        "left_share": _left_share(study, book, kept),
        "made": study.made,
    }


def votes_of(study: Study, book: Book, question: str, raters: Iterable[int]) -> list[Vote]:
    """The answers of raters to a question about pairs of systems, the first of which comes first in the study."""
    found, places = [], {name: place for place, name in enumerate(study.systems)}
    for (rater, number, asked), answer in book.answers.items():
        trial = study.trials[number]
        if asked != question or trial.kind != PAIR or rater not in raters:
            continue
        left, right = places[trial.left], places[trial.right]
        won = 0.5 if answer == TIE else float((answer == LEFT) == (left < right))
        first, second = sorted((left, right))
        found.append(Vote(rater=rater, name=trial.name, first=first, second=second, won=won))
    return found


# ------------------------------------------------------------------------------------------- raters


def _rater(study: Study, book: Book, rater: int, least_passed: float) -> dict[str, Any]:
    """What a rater answered, and which checks were passed: every question that a ruin decides names the intact clip."""
    of_trial: dict[str, dict[str, str]] = {}
    for (who, number, question), answer in book.answers.items():
        if who == rater:
            of_trial.setdefault(number, {})[question] = answer
    checks = [
        _is_passed(study, number, said) for number, said in of_trial.items() if study.trials[number].kind == CHECK
    ]
    checks = [passed for passed in checks if passed is not None]
    pairs = sum(study.trials[number].kind == PAIR for number in of_trial)
    return {
        "pairs": pairs,
        "checks": len(checks),
        "passed": sum(checks),
        "is_excluded": bool(checks) and sum(checks) < least_passed * len(checks),
    }


def _is_passed(study: Study, number: str, said: Mapping[str, str]) -> bool | None:
    """None where no question that the ruin decides was answered."""
    trial = study.trials[number]
    decided = [said[question] for question in RUINS[trial.ruin].decides if question in said]
    return all(answer == trial.intact for answer in decided) if decided else None


def _left_share(study: Study, book: Book, raters: Iterable[int]) -> float | None:
    """How often the left clip was preferred, ties aside: half of the times where sides play no part."""
    said = [a for (r, t, _), a in book.answers.items() if study.trials[t].kind == PAIR and r in raters and a != TIE]
    return sum(answer == LEFT for answer in said) / len(said) if said else None


# ---------------------------------------------------------------------------------------- questions


def _question(study: Study, votes: Sequence[Vote]) -> dict[str, Any]:
    count = len(study.systems)
    values_S = strengths.fit(strengths.wins(votes, count))
    bounds_S = map(intervals.bounds, strengths.bootstrap(votes, count).T)
    pairs = [_between(study, votes, a, b) for a, b in itertools.combinations(range(count), 2)]
    rows = zip(study.systems, values_S, bounds_S)
    return {
        "strengths": {name: {"value": float(v), "low": a, "high": b} for name, v, (a, b) in rows},
        "pairs": [pair for pair in pairs if pair],
        "agreement": agreement.summary(votes),
    }


def _between(study: Study, votes: Sequence[Vote], first: int, second: int) -> dict[str, Any] | None:
    """Wins, ties and losses of two systems, and the sign test of the names of clips."""
    mine = [vote for vote in votes if (vote.first, vote.second) == (first, second)]
    if not mine:
        return None
    counted = {value: sum(vote.won == value for vote in mine) for value in agreement.VALUES}
    named = {"first": study.systems[first], "second": study.systems[second]}
    outcome = {"wins": counted[1.0], "ties": counted[0.5], "losses": counted[0.0]}
    return named | outcome | {"sign_test": sign_test(mine)}


def sign_test(votes: Sequence[Vote]) -> dict[str, Any]:
    """The exact sign test of the first system against the second, over names of clips.

    The answers of several raters to one pair depend on each other, so each name has one sign: that of its majority.
    Names whose answers are balanced have none.  `share` is the share of signs for the first system, with its exact
    (Clopper-Pearson) interval; `p` is two-sided.
    """
    sums: dict[str, float] = {}
    for vote in votes:
        sums[vote.name] = sums.get(vote.name, 0.0) + 2 * vote.won - 1
    won, lost = (sum(np.sign(value) == sign for value in sums.values()) for sign in (1, -1))
    if not won + lost:
        return {"for": 0, "against": 0, "p": 1.0, "share": None, "low": None, "high": None}
    test = stats.binomtest(int(won), int(won + lost))
    low, high = test.proportion_ci(intervals.LEVEL, method="exact")
    return {
        "for": int(won),
        "against": int(lost),
        "p": float(test.pvalue),
        "share": test.statistic,
        "low": float(low),
        "high": float(high),
    }


# --------------------------------------------------------------------------------------------- text


def text(record: Mapping[str, Any]) -> str:
    """The record as tables, with what was left out."""
    questions = record["questions"].items()
    blocks = [
        tables.format_table(
            [_pair_row(name, pair) for name, found in questions for pair in found["pairs"]], "PREFERRED"
        ),
        tables.format_table(
            [
                _strength_row(name, system, value)
                for name, found in questions
                for system, value in found["strengths"].items()
            ],
            "STRENGTHS (BRADLEY-TERRY)",
        ),
        tables.format_table([_agreement_row(name, found["agreement"]) for name, found in questions], "AGREEMENT"),
        "\n".join(_notes(record)),
    ]
    return "\n\n".join(blocks)


def _pair_row(name: str, pair: Mapping[str, Any]) -> dict[str, Any]:
    signs, total = pair["sign_test"], pair["wins"] + pair["ties"] + pair["losses"]
    return {
        "question": name,
        "first": pair["first"],
        "second": pair["second"],
        **{key: f"{pair[key]} ({pair[key] / total:.0%})" for key in ("wins", "ties", "losses")},
        "signs": f"{signs['for']}:{signs['against']}",
        "share": _interval(signs["share"], signs["low"], signs["high"]),
        "p": f"{signs['p']:.3g}",
    }


def _strength_row(name: str, system: str, found: Mapping[str, float]) -> dict[str, str]:
    return {"question": name, "system": system, "strength": _interval(found["value"], found["low"], found["high"])}


def _agreement_row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    flag = f"below {agreement.LEAST}: raters do not agree" if found["is_low"] else ""
    alpha = _interval(found["alpha"], found["low"], found["high"])
    return {"question": name, "alpha": alpha, "pairs": found["pairs"], "note": flag}


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _notes(record: Mapping[str, Any]) -> list[str]:
    raters, excluded = record["raters"], record["excluded"]
    found = [f"{record['answers']} answers of {len(raters) - len(excluded)} raters; wins are those of the first system"]
    for rater in excluded:
        passed, checks = raters[str(rater)]["passed"], raters[str(rater)]["checks"]
        found.append(f"rater {rater} is left out: {passed} of {checks} attention checks passed")
    if unchecked := [rater for rater, one in raters.items() if not one["checks"]]:
        found.append(f"raters without an answered attention check: {', '.join(unchecked)}")
    if record["left_share"] is not None:
        found.append(f"the left clip was preferred in {record['left_share']:.0%} of answers that were no tie")
    refused = [*record["refused"].items()]
    found += [f"{len(refused)} lines do not count, such as {refused[0][0]}: {refused[0][1]}"] if refused else []
    if len(raters) - len(excluded) == 1:
        found.append("one rater: intervals of strengths are over clips alone, and there is no agreement")
    return found
