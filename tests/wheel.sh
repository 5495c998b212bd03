#!/usr/bin/env bash
# Build the wheel, install it into an empty environment far from the checkout, and use it from there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$(dirname "$0")/.."
"$BIN/python" -m build --wheel --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$CONSTRAINTS" "$work"/dist/*.whl
cd "$work"
export POLYGUIDE_CACHE="$work/cache"
"$work/venv/bin/polyguide" list | grep -q 'site-packages/guidance/configs/data/digits.yaml'
"$work/venv/bin/polyguide" train --help | grep -q 'audio_folder, digits'
"$work/venv/bin/polyguide" train modality=audio out=run --cfg job | grep -q modalities.audio.notes.Notes
"$work/venv/bin/polyguide" --help | grep -q import-diffwave
"$work/venv/bin/polyguide" train data=digits trainer.steps=3 trainer.batch_size=8 network.channels=8 out=run
"$work/venv/bin/python" -m guidance sample run=run n=2 condition.digit=3 guidance.scale=-1 sampler.steps=3 out=samples
test -s samples/000001.png
"$work/venv/bin/polyguide" experiment run=run experiment=tradeoff n=8 sampler.steps=3 'experiment.scales=[0,1]' out=experiment
grep -q 'Fidelity against diversity' experiment/report.html
echo "the wheel works in an empty environment"
