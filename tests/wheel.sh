#!/usr/bin/env bash
# Build the wheel and that of the outside plug-in, install both into an empty environment far from the checkout, and use them from there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$(dirname "$0")/.."
cp -r examples/point-cloud-plugin "$work/plugin"
for source in . "$work/plugin"; do
    "$BIN/python" -m build --wheel --no-isolation --outdir "$work/dist" "$source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
done
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$CONSTRAINTS" "$work"/dist/*.whl pytest
cd "$work"
export POLYGUIDE_CACHE="$work/cache"
"$work/venv/bin/polyguide" list | grep -q 'site-packages/guidance/configs/data/digits.yaml'
"$work/venv/bin/polyguide" train --help | grep -q 'audio_shards, digits'
"$work/venv/bin/polyguide" train modality=audio out=run --cfg job | grep -q modalities.audio.notes.Notes
"$work/venv/bin/polyguide" --help | grep -q import-diffwave
"$work/venv/bin/polyguide" train data=digits trainer.steps=3 trainer.batch_size=8 network.channels=8 out=run
"$work/venv/bin/python" -m guidance sample run=run n=2 condition.digit=3 guidance.scale=-1 sampler.steps=3 out=samples
test -s samples/000001.png
"$work/venv/bin/polyguide" experiment run=run experiment=tradeoff n=8 sampler.steps=3 'experiment.scales=[0,1]' out=experiment
grep -q 'Fidelity against diversity' experiment/report.html

# A modality from another package: trained, inverted, measured, checked; and one that is started from the skeleton.
"$work/venv/bin/polyguide" list | grep -q 'site-packages/point_cloud/configs/data/solids.yaml'
"$work/venv/bin/polyguide" train modality=point_cloud trainer.steps=20 trainer.batch_size=8 data.count=300 out=clouds
"$work/venv/bin/polyguide" sample run=clouds n=2 condition.solid=cone guidance.scale=-1 sampler.steps=3 out=cones
grep -q '^element vertex 64' cones/000001.ply
"$work/venv/bin/polyguide" evaluate run=clouds n=10 'scales=[-1,1]' sampler.steps=3
"$work/venv/bin/polyguide" experiment run=clouds experiment=inverse n=10 sampler.steps=3 'experiment.scales=[-1,0,1]' 'experiment.ordered_scales=[-1,0,1]'
grep -q 'Is inverse guidance on height its opposite' clouds/experiments/inverse/report.html
"$work/venv/bin/python" -m pytest --pyargs guidance.testing --modality=point_cloud --override data.count=600
"$work/venv/bin/polyguide" new-modality curves
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps ./curves
"$work/venv/bin/polyguide" train modality=curves trainer.steps=3 out=waves
echo "the wheels work in an empty environment"
