"""Words for what the engine records of a clip: motions, events and objects in view.

A record holds, among other things (see `recording.Recorder`):

    pose:    [[x, y, angle_deg], ...]                  one per frame, map units
    objects: [[[class, id, area_permille], ...], ...]  one list per frame, area within the view
    events:  [[step, kind, detail], ...]               step i lies between frames i and i + 1
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import Any

MIN_STEP_UNITS = 8.0  # a walking player covers about 36 map units in a step
MIN_STEP_DEG = 3.0
MIN_DAMAGE = 10  # health points in one step; a scratch can hardly be seen or heard
MIN_STEP_SHARE = 0.25  # an action is named if it fills this share of the steps
MIN_AREA_PERMILLE = 4  # 16 pixels of a 64x64 frame
MIN_FRAMES_IN_VIEW = 3
MAX_ACTIONS = 2
MAX_OBJECTS = 3

WEAPONS = {
    1: "fist",
    2: "pistol",
    3: "shotgun",
    4: "chaingun",
    5: "rocket launcher",
    6: "plasma rifle",
    7: "energy cannon",
}

# Freedoom keeps Doom's class names but draws creatures of its own; the words are the usual roles.
PLAIN_NAMES = {
    "Zombieman": "zombie soldier",
    "ShotgunGuy": "shotgun zombie",
    "ChaingunGuy": "machine gunner",
    "DoomImp": "imp",
    "Demon": "demon",
    "Spectre": "shadow demon",
    "LostSoul": "flying skull",
    "Cacodemon": "floating monster",
    "PainElemental": "pain elemental",
    "HellKnight": "knight",
    "BaronOfHell": "baron",
    "Revenant": "skeleton",
    "Fatso": "fat monster",
    "Arachnotron": "spider robot",
    "Archvile": "arch fiend",
    "Cyberdemon": "giant cyborg",
    "SpiderMastermind": "giant spider",
    "WolfensteinSS": "guard",
    "CommanderKeen": "hanging doll",
    "DoomImpBall": "fireball",
    "CacodemonBall": "fireball",
    "BaronBall": "green fireball",
    "FatShot": "fireball",
    "ArachnotronPlasma": "plasma ball",
    "PlasmaBall": "plasma ball",
    "Rocket": "flying rocket",
    "RevenantTracer": "guided missile",
    "BFGBall": "energy ball",
    "ExplosiveBarrel": "barrel",
    "BurningBarrel": "burning barrel",
    "HealthBonus": "health vial",
    "ArmorBonus": "armor shard",
    "GreenArmor": "green armor vest",
    "BlueArmor": "blue armor vest",
    "Stimpack": "small medical kit",
    "Medikit": "medical kit",
    "Soulsphere": "blue sphere",
    "Megasphere": "large sphere",
    "InvulnerabilitySphere": "green sphere",
    "BlurSphere": "invisibility sphere",
    "Berserk": "strength pack",
    "Infrared": "night goggles",
    "RadSuit": "protective suit",
    "Allmap": "map computer",
    "Backpack": "backpack",
    "Clip": "ammo clip",
    "ClipBox": "box of bullets",
    "Shell": "group of shells",
    "ShellBox": "box of shells",
    "RocketAmmo": "rocket",
    "RocketBox": "box of rockets",
    "Cell": "energy cell",
    "CellPack": "energy pack",
    "SuperShotgun": "double shotgun",
    "PlasmaRifle": "plasma rifle",
    "RocketLauncher": "rocket launcher",
    "BFG9000": "energy cannon",
    "TorchTree": "bare tree",
    "BigTree": "big tree",
    "Stalagtite": "stalagmite",
    "TechPillar": "computer pillar",
    "TechLamp": "tall lamp",
    "TechLamp2": "lamp",
    "Column": "lamp post",
    "TallGreenColumn": "tall green column",
    "ShortGreenColumn": "short green column",
    "TallRedColumn": "tall red column",
    "ShortRedColumn": "short red column",
    "SkullColumn": "column with a skull",
    "HeartColumn": "column with a heart",
    "Candlestick": "candle",
    "Candelabra": "candelabra",
    "DeadZombieMan": "dead zombie soldier",
    "DeadExplosiveBarrel": "exploding barrel",
    "RedCard": "red key card",
    "BlueCard": "blue key card",
    "YellowCard": "yellow key card",
    "RedSkull": "red skull key",
    "BlueSkull": "blue skull key",
    "YellowSkull": "yellow skull key",
    "HeadCandles": "pile of skulls",
    "HeadsOnAStick": "stake of heads",
    "HeadOnAStick": "head on a stick",
    "LiveStick": "impaled body",
    "DeadStick": "impaled body",
    "ArchvileFire": "flame",
    "GibbedMarine": "dead marine",
    "GibbedMarineExtra": "dead marine",
}
# Sprites that are the player's own, or too brief to be an object of the scene.
UNNAMED = frozenset(
    {
        "DoomPlayer",
        "BulletPuff",
        "Blood",
        "TeleportFog",
        "TeleportDest",
        "ItemFog",
        "Gibs",
        "BFGExtra",
        "RevenantTracerSmoke",
        "RocketSmokeTrail",
        "ColonGibs",
        "SmallBloodPool",
        "BrainStem",
        "Unknown",
    }
)
_HANGING = re.compile(r"(Nonsolid)?(Meat|Twitch)\d*$|Hang[TBN]")
_COUNT_WORDS = {2: "two", 3: "three"}


def plain_name(engine_class: str) -> str:
    """Turns an engine class such as `DoomImp` into words; an unknown class is split by its case."""
    if engine_class in PLAIN_NAMES:
        return PLAIN_NAMES[engine_class]
    if engine_class.startswith("Dead") and engine_class[4:] in PLAIN_NAMES:
        return f"dead {PLAIN_NAMES[engine_class[4:]]}"
    if _HANGING.match(engine_class):
        return "hanging body"
    words = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[0-9])(?=[A-Za-z])|_", " ", engine_class)
    return re.sub(r"\s+", " ", words).strip().lower()


def plural(name: str) -> str:
    """Plural of a name of this module's vocabulary (`box of shells` -> `boxes of shells`)."""
    joints = (joint for joint in (" of ", " with ", " on ") if joint in name)
    head, joint, tail = name.partition(next(joints, " of "))
    if head.endswith("body"):
        return f"{head[:-1]}ies{joint}{tail}"
    suffix = "es" if head.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{head}{suffix}{joint}{tail}"


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def joined(phrases: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def step_motions(pose: list[list[float]]) -> list[list[str]]:
    """The motions seen between each two frames, measured from poses and not from buttons."""
    motions = []
    for (x0, y0, angle0), (x1, y1, angle1) in zip(pose, pose[1:]):
        heading = math.radians(angle0)
        ahead = (x1 - x0) * math.cos(heading) + (y1 - y0) * math.sin(heading)
        leftward = (y1 - y0) * math.cos(heading) - (x1 - x0) * math.sin(heading)
        turn = (angle1 - angle0 + 180.0) % 360.0 - 180.0
        motions.append(
            [
                name
                for name, amount, floor in (
                    ("walks forward", ahead, MIN_STEP_UNITS),
                    ("walks backward", -ahead, MIN_STEP_UNITS),
                    ("steps left", leftward, MIN_STEP_UNITS),
                    ("steps right", -leftward, MIN_STEP_UNITS),
                    ("turns left", turn, MIN_STEP_DEG),
                    ("turns right", -turn, MIN_STEP_DEG),
                )
                if amount >= floor
            ]
        )
    return motions


def action_phrases(record: dict[str, Any]) -> list[str]:
    """The one or two commonest motions of the clip, the commonest first."""
    steps = step_motions(record["pose"])
    counts = Counter(name for step in steps for name in step)
    common = [
        name
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= MIN_STEP_SHARE * len(steps)
    ]
    return common[:MAX_ACTIONS] or ["hardly moves"]


def event_phrases(record: dict[str, Any]) -> list[str]:
    """One phrase per kind of event while the frames are shown, in the order they first happen."""
    details = defaultdict(list)
    for step, kind, detail in sorted(record["events"], key=lambda event: event[0]):
        scratch = kind in ("hurt", "heal") and detail < MIN_DAMAGE
        if step < len(record["pose"]) - 1 and not scratch:
            details[kind].append(detail)
    return [_event_phrase(kind, amounts) for kind, amounts in details.items()]


def _event_phrase(kind: str, details: list[int]) -> str:
    if kind == "weapon":
        return f"changes to the {WEAPONS.get(details[-1], 'next weapon')}"
    if kind == "shot":
        weapon = Counter(details).most_common(1)[0][0]
        return f"fires the {WEAPONS.get(weapon, 'weapon')}"
    if kind == "kill":
        total = sum(details)
        return f"kills {counted('monster', total)}"
    return {"pickup": "picks up an item", "heal": "picks up a medical kit", "hurt": "gets hurt"}[kind]


def object_phrases(record: dict[str, Any]) -> list[str]:
    """Up to three kinds of object in view, those that fill most of the view first."""
    area, frames, most = Counter(), Counter(), Counter()
    for labels in record["objects"]:
        seen = Counter()
        for engine_class, _, permille in labels:
            if engine_class not in UNNAMED and permille >= MIN_AREA_PERMILLE:
                name = plain_name(engine_class)
                seen[name] += 1
                area[name] += permille
        for name, count in seen.items():
            frames[name] += 1
            most[name] = max(most[name], count)
    steady = (name for name in area if frames[name] >= MIN_FRAMES_IN_VIEW)
    names = sorted(steady, key=lambda name: (-area[name], name))
    return [counted(name, most[name]) for name in names[:MAX_OBJECTS]]


def counted(name: str, count: int) -> str:
    """`an imp`, `two imps`, `several imps`."""
    if count == 1:
        return with_article(name)
    return f"{_COUNT_WORDS.get(count, 'several')} {plural(name)}"
