#!/usr/bin/env bash
# From nothing to a dialog agent with a persona in a few minutes: installs what is missing, trains a tiny model from
# scratch on the embedded example set, prints how good it became, and chats with it.
#
#   bash scripts/demo.sh [FOLDER]       the model goes to FOLDER (default: models/demo); one of an earlier demo is set
#                                       aside as FOLDER.1, .2, ...
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment requirements.lock requirements.txt
model=${1:-models/demo}
model=${model%/}
export OMP_NUM_THREADS=1 # in a model this small further threads would only wait for each other
data=(--dataset_path example --dataset_cache "$model-cache")

echo "== 1. a vocabulary of the example set and the shape of a tiny GPT-2"
"$PYTHON" new_model.py "$model-untrained" --dataset_path example --family gpt2 --vocab_size 1000 \
    --n_layer 2 --n_embd 64 --n_head 4 --n_positions 256 --dropout 0 --initializer_range 0.12

echo "== 2. training from scratch, about five minutes on two cores"
"$PYTHON" train.py --model "$model-untrained" --from_scratch "${data[@]}" --output_dir "$model" --set_aside \
    --num_candidates 4 --max_history 0 --train_batch_size 16 --gradient_accumulation_steps 1 --valid_batch_size 16 \
    --lr 2e-3 --warmup 200 --n_epochs 3 --align_history
"$PYTHON" - "$model" <<'PY'
import pathlib, sys

from convai.training.validations import after_an_update, best_of, read_validations, shown

best = best_of(after_an_update(read_validations(pathlib.Path(sys.argv[1]))), "hits@1")
print(f"hits@1 {shown(best['hits@1'])} of 20 candidates (chance 0.050), perplexity {best['perplexity']:.3f} per token")
PY

chat=("$PYTHON" interact.py --model_checkpoint "$model" --max_history 0 --no_sample)
echo "== 3. a conversation: this persona was never seen in training"
printf '%s\n' "hello . where do you live ?" "do you have a pet ?" "what is your job ?" "what music do you like ?" |
    "${chat[@]}" --personality "i live in cairo ." "my pet is a parrot ." "i work as a nurse ." "i listen to jazz ."

echo "== Chat with it yourself: python interact.py --model_checkpoint $model --max_history 0 --no_sample"
if [ -t 0 ] && [ -t 1 ]; then
    exec "${chat[@]}"
fi
