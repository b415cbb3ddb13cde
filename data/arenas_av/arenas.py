"""The arenas: which scenario of ViZDoom each is, how it is named, where its episodes may start."""

from __future__ import annotations

import dataclasses
import pathlib

# (x0, y0, x1, y1) in map units.
Region = tuple[float, float, float, float]
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arena:
    """One scenario.

    Attributes:
      name: the file `scenarios/NAME.wad` of the package.
      place: what captions call it, read after "in" or "on".
      skill: the engine's difficulty, as in the scenario's own configuration.
      held_out: split -> region in which its episodes start, and those of other splits do not; for
        scenarios that draw the start of an episode.
    """

    name: str
    place: str
    skill: int = 3
    held_out: dict[str, tuple[Region, ...]] = dataclasses.field(default_factory=dict)

    def split_of_start(self, x: float, y: float) -> str | None:
        """The split that alone may start here; None where every split starts in one place."""
        if not self.held_out:
            return None
        for split, regions in self.held_out.items():
            if any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in regions):
                return split
        return "train"


def _around(*spots: tuple[float, float]) -> tuple[Region, ...]:
    return tuple((x - 40, y - 40, x + 40, y + 40) for x, y in spots)


ARENAS = (
    Arena(name="basic", place="in the brown hall"),
    Arena(name="simpler_basic", place="in the hall with yellow lights"),
    Arena(name="deadly_corridor", place="in the long corridor"),
    Arena(name="defend_the_center", place="in the round arena"),
    Arena(name="defend_the_line", place="in the long hall"),
    Arena(name="health_gathering", place="on the green field"),
    Arena(
        name="health_gathering_supreme",
        place="in the green maze",
        held_out={"validation": _around((256, 1600), (1760, 448)), "test": _around((864, 288), (928, 1664))},
    ),
    Arena(
        name="my_way_home",
        place="in the rooms of many walls",
        held_out={"validation": _around((460, -596), (871, 54)), "test": _around((240, -176), (686, -173))},
    ),
    Arena(name="predict_position", place="in the hall with red lamps"),
    Arena(name="take_cover", place="in the wide hall"),
    Arena(name="deathmatch", place="in the court with coloured pillars"),
)
BY_NAME = {arena.name: arena for arena in ARENAS}


def scenario_file(name: str) -> pathlib.Path:
    """Where the installed ViZDoom keeps a scenario."""
    import vizdoom

    return pathlib.Path(vizdoom.__file__).parent / "scenarios" / f"{name}.wad"


def present() -> tuple[Arena, ...]:
    """The arenas whose scenario the installed ViZDoom has."""
    return tuple(arena for arena in ARENAS if scenario_file(arena.name).is_file())
