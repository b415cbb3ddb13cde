"""Interactive editing: candidates from any frame of a film, a choice among them, undo and branches.

A session is a folder that can be closed at any time and replayed to the same bytes:

    SESSION/
      session.json  the tree: each node with its text, its parent and the key of its noise; the current node
      given.npz     the opening frames and their sound
      clips/        the clip of each node (`poet.sampling.films.pieces`)
      sheet.png     the last candidates
      film.mp4, film.png   the film of the current node, once written

The first node is the opening, or nothing.  The others are candidates, each a clip after its parent, and cuts, which
keep the frames of the parent's film up to one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poet import media
from poet.runs import lease
from poet.sampling.films import pieces, sheets
from poet.sampling.films.folder import Take, check_same, write_film
from poet.sampling.films.pieces import Piece
from poet.sampling.films.sampler import FilmSampler, Wish
from poet.spec import SampleSpec, UserError, read_object

SESSION, GIVEN, CLIPS, SHEET = "session.json", "given.npz", "clips", "sheet.png"
FORMAT = 1
BEGIN, CUT, CANDIDATE = "begin", "cut", "candidate"
# Frames of a candidate in a sheet.
MOST_SHOWN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A film of a session: the film of its parent, and a clip of its own.

    Attributes:
      kind: BEGIN, CUT or CANDIDATE.
      parent: its number; -1 for the first.
      at: frames of the parent's film that a cut keeps.
      proposal: number of the first candidate of its proposal; the noise depends on it, on the session's seed and on
        `row`, the index in the proposal.
      wish: the request of a candidate.
    """

    kind: str
    parent: int = -1
    at: int = 0
    proposal: int = -1
    row: int = 0
    wish: Wish = Wish()


class Session:
    """A session of editing; `create` begins one, `open` resumes one.

    Attributes:
      nodes: all of them, in order of creation; their index is their number.
      current: the node that the next candidates continue.
      unmarked: why its films carry no watermark; '' if they do.
    """

    def __init__(
        self,
        folder: Path,
        sampler: FilmSampler,
        fixed: dict[str, Any],
        nodes: list[Node],
        current: int,
        unmarked: str = "",
    ):
        self.folder, self.sampler, self.fixed = folder, sampler, fixed
        self.nodes, self.current, self.unmarked = nodes, current, unmarked

    @classmethod
    def create(
        cls,
        folder: str | Path,
        sampler: FilmSampler,
        *,
        video: np.ndarray | None = None,
        sound: np.ndarray | None = None,
        seed: int = 0,
        sample: SampleSpec | None = None,
        made_by: dict[str, Any] | None = None,
    ) -> Session:
        """A new session with the opening of a film, see `FilmSampler.begin`.

        Args:
          made_by: what else determines its clips, such as the checkpoint.

        Raises UserError: the folder is not empty.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {lease.FILE}):
            raise UserError(f"{folder} is not empty: give a new folder for the session, or open the one that is there")
        sample = sample or sampler.generator.resolved.spec.sample
        session = cls(folder, sampler, _fixed(sampler, seed, sample, made_by), [], 0, sample.unmarked)
        pieces.save_media(folder / GIVEN, video, sound)
        session._append([Node(kind=BEGIN)], [sampler.begin(video, sound)])
        session.save()
        return session

    @classmethod
    def open(
        cls,
        folder: str | Path,
        sampler: FilmSampler,
        *,
        sample: SampleSpec | None = None,
        made_by: dict[str, Any] | None = None,
    ) -> Session:
        """Opens a session; it keeps its seed.

        Raises UserError: it is damaged, or has another version, checkpoint or settings.
        """
        folder = Path(folder)
        found = read_object(folder / SESSION)
        if found.get("format") != FORMAT:
            raise UserError(f"{folder / SESSION} has format {found.get('format')}, this version reads {FORMAT}")
        try:
            fixed, current = found["fixed"], found["current"]
            nodes = _nodes(found["nodes"])
            seed, node = fixed["seed"], nodes[current]
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{folder / SESSION} is damaged: {error!r}") from None
        sample = sample or sampler.generator.resolved.spec.sample
        check_same(folder, fixed, _fixed(sampler, seed, sample, made_by))
        return cls(folder, sampler, fixed, nodes, nodes.index(node, current), sample.unmarked)

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other writers away for the duration of a block."""
        return lease.hold(self.folder, what="session")

    def save(self) -> None:
        """Writes the tree; every method that changes it calls this."""
        nodes = self.request["nodes"]
        tree = {"format": FORMAT, "fixed": self.fixed, "current": self.current, "nodes": nodes}
        media.write_text(self.folder / SESSION, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")

    # ------------------------------------------------------------------------------------------ films

    def path(self, node: int | None = None) -> list[int]:
        """The nodes whose pieces make the film of a node (by default the current one), in order.

        Raises UserError for an unknown number.
        """
        number = self.current if node is None else node
        if not 0 <= number < len(self.nodes):
            raise UserError(f"there is no clip {number}: the session has 0..{len(self.nodes) - 1}")
        found = [number]
        while self.nodes[found[0]].kind == CANDIDATE:
            found.insert(0, self.nodes[found[0]].parent)
        return found

    def pieces(self, node: int | None = None) -> Iterator[Piece]:
        """The pieces of a node's film."""
        return (pieces.load(self._clip(number)) for number in self.path(node))

    def frames(self, node: int | None = None) -> int:
        """Frames of a node's film."""
        return pieces.load(self._clip(self.path(node)[-1])).end.frames

    def film(self, node: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """A node's film: uint8 [T, H, W, 3], and its sound int16 [S], None for a silent one."""
        take = Take(lambda: self.pieces(node), self.frames(node))
        frames, samples = zip(*take.parts(self.sampler.windows))
        return np.concatenate(frames), None if samples[0] is None else np.concatenate(samples)

    def write(self, node: int | None = None) -> list[Path]:
        """Writes a node's film, mp4 and picture, into the session's folder."""
        frames = self.frames(node)
        if not frames:
            raise UserError("there is no film yet: propose candidates, and choose one")
        begun = pieces.load_media(self.folder / GIVEN)[0]
        take = Take(lambda: self.pieces(node), frames, 0 if begun is None else len(begun))
        return write_film(self.folder, [take], self.sampler.windows, self.unmarked)

    # ---------------------------------------------------------------------------------------- editing

    def propose(self, wishes: Sequence[Wish], *, at: int | None = None, node: int | None = None) -> list[int]:
        """Samples candidates that continue a node (by default the current one); returns their numbers.

        Args:
          wishes: one for each.
          at: they begin after so many frames of the film; None is its end.  The current node does not change.

        Raises UserError for a frame outside the film, and as `FilmSampler.go_on`.
        """
        path = self.path(node)
        parent, frames = path[-1], self.frames(node)
        if at is not None and not 1 <= at <= frames:
            raise UserError(f"frame {at}: the film has {frames}; candidates begin after 1..{frames} of them")
        added, made = [], []
        if at is not None and at < frames:
            added, made, parent = [Node(kind=CUT, parent=parent, at=at)], [self._cut(parent, at)], len(self.nodes)
            base = made[0]
        else:
            base = self.sampler.resume(self.pieces(node))
        proposal = len(self.nodes) + len(added)
        made += self._sampled(base, wishes, proposal)
        added += [
            Node(kind=CANDIDATE, parent=parent, proposal=proposal, row=row, wish=wish)
            for row, wish in enumerate(wishes)
        ]
        self._append(added, made)
        self.save()
        candidates = list(range(proposal, len(self.nodes)))
        self.write_sheet(candidates)
        return candidates

    def choose(self, node: int) -> None:
        """Makes a node current: a candidate, or an earlier one to branch from.  UserError for an unknown number."""
        self.current = self.path(node)[-1]
        self.save()

    def undo(self) -> int:
        """Makes the parent current (of a cut, its film); returns its number.  UserError at the first node."""
        node = self.nodes[self.current]
        if node.parent < 0:
            raise UserError("nothing to undo: the session is at its beginning")
        parent = self.nodes[node.parent]
        self.choose(parent.parent if parent.kind == CUT else node.parent)
        return self.current

    def write_sheet(self, candidates: Sequence[int]) -> Path:
        """Writes the contact sheet of candidates: for each the frame before it, then its own frames."""
        rows = []
        for number in candidates:
            parent = pieces.load(self._clip(self.nodes[number].parent)).end.pixels[-1:]
            own = pieces.load(self._clip(number)).frames
            rows.append([*parent, *own[:: -(-len(own) // MOST_SHOWN)]])
        sheets.write(self.folder / SHEET, rows, [str(number) for number in candidates])
        return self.folder / SHEET

    @property
    def request(self) -> dict[str, Any]:
        """What `remade` takes: what the session was given, its tree, and which node is current."""
        nodes = [dataclasses.asdict(node) for node in self.nodes]
        given = str(self.folder / GIVEN)
        return {"given": given, "seed": self.fixed["seed"], "nodes": nodes, "current": self.current}

    @classmethod
    def remade(cls, folder: str | Path, sampler: FilmSampler, request: Mapping[str, Any], **made: Any) -> Session:
        """Makes all clips of a session again in a new folder; `made` is `sample` and `made_by` of `create`."""
        video, sound = pieces.load_media(Path(request["given"]))
        again = cls.create(folder, sampler, video=video, sound=sound, seed=request["seed"], **made)
        nodes = _nodes(request["nodes"])
        for number in range(1, len(nodes)):
            node = nodes[number]
            if node.kind == CUT:
                again._append([node], [again._cut(node.parent, node.at)])
            elif node.row == 0:
                group = [other for other in nodes if other.proposal == number]
                again._append(
                    group,
                    again._sampled(again.sampler.resume(again.pieces(node.parent)), [o.wish for o in group], number),
                )
        again.choose(request["current"])
        return again

    def _cut(self, parent: int, at: int) -> Piece:
        """The piece that opens with the first frames of a film and their sound."""
        frames, sound = self.film(parent)
        return self.sampler.begin(frames[:at], None if sound is None else sound[: self.sampler.windows.sample_of(at)])

    def _sampled(self, base: Piece, wishes: Sequence[Wish], proposal: int) -> list[Piece]:
        sample = SampleSpec(**self.fixed["sample"])
        return self.sampler.go_on(base, wishes, seed=self.fixed["seed"], number=proposal, sample=sample)

    def _append(self, nodes: Sequence[Node], made: Sequence[Piece]) -> None:
        """Writes clips before nodes, so that every node has its clip."""
        for number, piece in enumerate(made, len(self.nodes)):
            pieces.save(self._clip(number), piece)
        self.nodes += nodes

    def _clip(self, number: int) -> Path:
        return self.folder / CLIPS / f"{number:05d}.npz"


def _nodes(found: Sequence[Mapping[str, Any]]) -> list[Node]:
    return [Node(**{**node, "wish": Wish(**node["wish"])}) for node in found]


def _fixed(sampler: FilmSampler, seed: int, sample: SampleSpec, made_by: dict[str, Any] | None) -> dict[str, Any]:
    """The settings of a whole session."""
    found = {"seed": seed, "sample": {**sample.noise, "seed": 0}, "made_by": {**(made_by or {}), **sampler.made_by}}
    return json.loads(json.dumps(found))
