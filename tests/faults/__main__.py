"""`python -m tests.faults [NAME ...] [--times=N] [--long] [--keep]`: hurts commands of poet, and says what was lost."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fault_registry  # noqa: E402
import fault_world  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of faults; none: all")
    parser.add_argument("--times", type=int, default=0, help="how often each (default: as its form says)")
    parser.add_argument("--long", action="store_true", help="the long form: 50 kills, every file")
    parser.add_argument("--keep", action="store_true", help="add the results to results.jsonl and README.md")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; another one adds to the counts")
    parser.add_argument("--folder", default="", help="where the runs lie (default: a temporary folder)")
    parser.add_argument(
        "--patience", type=float, default=fault_world.PATIENCE_S, metavar="SECONDS", help="after which a command hangs"
    )
    args = parser.parse_args()
    fault_world.PATIENCE_S = args.patience
    faults = [f for name, f in fault_registry.load().items() if not args.names or any(n in name for n in args.names)]
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        world = fault_world.World(Path(args.folder or temporary))
        for fault in faults:
            times = args.times or (fault.long if args.long else fault.short)
            if not times:
                continue
            line = fault.run(world, times, args.seed)
            print(json.dumps(line), flush=True)
            bad += bool(line["lost"])
            if args.keep:
                fault_registry.keep(line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
