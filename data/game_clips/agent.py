"""A wandering player: walks where the depth buffer is open, strafes, shoots and changes weapons."""

from __future__ import annotations

import dataclasses

import numpy as np

BUTTONS = (
    "MOVE_FORWARD",
    "MOVE_BACKWARD",
    "MOVE_LEFT",
    "MOVE_RIGHT",
    "ATTACK",
    "USE",
    "TURN_LEFT_RIGHT_DELTA",
    "SELECT_WEAPON2",
    "SELECT_WEAPON3",
    "SELECT_WEAPON4",
)
_WEAPON_BUTTONS = BUTTONS[7:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Habits:
    """How a player behaves. Distances are depth-buffer levels; one level is about 8 map units.

    Attributes:
      near: what is ahead nearer than this is turned away from.
      pressing: turning away, the player still walks on while what is ahead is farther than this.
      narrow: from twice this on the player steers to the open side.
      fires: chances to begin to fire in a step, with and without a monster in view.
      weapons: chance to change the weapon in a step.
      doors: whether the player tries to open what is near.
    """

    near: int = 12
    pressing: int = 6
    narrow: int = 24
    fires: tuple[float, float] = (0.08, 0.015)
    weapons: float = 0.015
    doors: bool = True


class Wanderer:
    """Chooses the buttons of each step from the depth buffer, the last move and a random stream."""

    def __init__(self, rng: np.random.Generator, habits: Habits = Habits()):
        self._rng, self._habits = rng, habits
        self._drive_steps = 0
        self._escape_steps = 0
        self._burst_steps = 0
        self._stuck_steps = 0
        self._drive, self._strafe, self._turn_deg, self._escape_sign = 1, 0, 0.0, 1

    def act(self, depth_HxW: np.ndarray, moved_units: float, monsters: int) -> dict[str, float]:
        """Buttons pressed in the next step, by name; the turn is in degrees a tic, right positive.

        Args:
          depth_HxW: engine depth buffer of the current frame, larger is farther.
          moved_units: distance that the last step covered.
          monsters: how many monsters are in view.
        """
        height, width = depth_HxW.shape
        band_W = depth_HxW[height * 5 // 12 : height * 7 // 12].mean(0)
        left, ahead, right = (float(part.mean()) for part in np.array_split(band_W, 3))
        self._stuck_steps = self._stuck_steps + 1 if moved_units < 3 else 0
        buttons = self._move(left, ahead, right)
        buttons.update(self._fight(monsters))
        return {name: round(value, 2) for name, value in buttons.items() if value}

    def _move(self, left: float, ahead: float, right: float) -> dict[str, float]:
        if self._escape_steps == 0 and (ahead < self._habits.near or self._stuck_steps >= 4):
            self._escape_steps = int(self._rng.integers(6, 16))
            self._escape_sign = 1 if right + self._rng.normal(0, 4) > left else -1
        if self._escape_steps > 0:
            return self._escape(ahead)
        return self._cruise(left, ahead, right)

    def _escape(self, ahead: float) -> dict[str, float]:
        """Turns towards the open side; tries a door when pressed against something."""
        self._escape_steps -= 1
        self._drive_steps = 0
        buttons = {"TURN_LEFT_RIGHT_DELTA": 1.6 * self._escape_sign}
        if ahead >= self._habits.pressing and self._stuck_steps < 4:
            buttons["MOVE_FORWARD"] = 1
        elif self._stuck_steps >= 4:
            buttons["MOVE_BACKWARD" if self._stuck_steps % 2 else "MOVE_FORWARD"] = 1
            buttons["USE"] = self._tries_door(0.3)
        return buttons

    def _cruise(self, left: float, ahead: float, right: float) -> dict[str, float]:
        if self._drive_steps == 0:
            self._choose_course()
        self._drive_steps -= 1
        steer_deg = 0.0
        if ahead < 2 * self._habits.narrow:
            steer_deg = float(np.clip((right - left) / 20, -0.8, 0.8))
        buttons = {"TURN_LEFT_RIGHT_DELTA": self._turn_deg + steer_deg}
        if self._drive:
            buttons["MOVE_FORWARD" if self._drive > 0 else "MOVE_BACKWARD"] = 1
        if self._strafe:
            buttons["MOVE_RIGHT" if self._strafe > 0 else "MOVE_LEFT"] = 1
        if ahead < self._habits.narrow:
            buttons["USE"] = self._tries_door(0.1)
        return buttons

    def _tries_door(self, chance: float) -> float:
        return float(self._habits.doors and self._rng.random() < chance)

    def _choose_course(self) -> None:
        rng = self._rng
        self._drive_steps = int(rng.integers(6, 25))
        self._drive = int(rng.choice([1, -1, 0], p=[0.88, 0.06, 0.06]))
        self._strafe = int(rng.choice([0, 1, -1], p=[0.7, 0.15, 0.15]))
        self._turn_deg = float(rng.choice([0, 1, -1], p=[0.56, 0.22, 0.22]) * rng.uniform(0.4, 1.2))
        if self._drive == 0 and self._strafe == 0:
            self._turn_deg = float(rng.choice([1, -1]) * rng.uniform(0.7, 1.5))

    def _fight(self, monsters: int) -> dict[str, float]:
        rng = self._rng
        if self._burst_steps > 0:
            self._burst_steps -= 1
            return {"ATTACK": 1}
        if rng.random() < self._habits.fires[0 if monsters else 1]:
            self._burst_steps = int(rng.integers(1, 6))
        if rng.random() < self._habits.weapons:
            return {str(rng.choice(_WEAPON_BUTTONS)): 1}
        return {}
