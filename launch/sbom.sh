#!/usr/bin/env bash
# Lists what is installed in .venv: sbom.json (CycloneDX, with licences) and licences.txt, a line for each package.
#   bash launch/sbom.sh [FOLDER]      by default build/
# Known vulnerabilities are asked for over the network:
#   .venv/bin/pip-audit --require-hashes --disable-pip -r launch/locks/linux-x86_64-cp311.txt
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
folder=${1:-build}
mkdir -p "$folder"
python -m pip install --quiet --disable-pip-version-check -e '.[release]'
cyclonedx-py environment --output-reproducible --output-format JSON --output-file "$folder/sbom.json" .venv
python - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
lines = []
for part in json.loads((folder / "sbom.json").read_text())["components"]:
    found = [entry.get("expression") or entry["license"].get("id") or entry["license"].get("name") for entry in part.get("licenses", [])]
    lines.append(f"{part['name']}=={part.get('version', '?')}: {', '.join(sorted(set(found))) or 'not declared'}")
(folder / "licences.txt").write_text("\n".join(sorted(lines, key=str.lower)) + "\n")
PYTHON
say "Wrote $folder/sbom.json and $folder/licences.txt"
