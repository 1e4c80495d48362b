#!/usr/bin/env bash
# ParlAI's own commands with our agent, in a fresh environment that README.md's two installing commands made and nothing
# else: about a minute and a half where pip finds its wheels on the disk.
#
#   bash scripts/check_parlai.sh
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 PYTHONNOUSERSITE=1
unset PYTHONPATH

echo "== an environment of requirements.txt and requirements-parlai.txt"
"${PYTHON:-python3}" -m venv "$folder/venv"
source "$folder/venv/bin/activate"
pip install -r requirements.txt
pip install --no-deps -r requirements-parlai.txt

echo "== a tiny model"
printf '%s\n' $'1 your persona: i have a cat .\n2 any pets ?\ti have a cat .\t\ti ski .|i like tea .|i have a cat .' \
    $'3 what do you drink ?\ttea .\t\ti ski .|tea .\n1 hello !\thi , i ski .\t\ti like tea .|hi , i ski .' > "$folder/data.txt"
python new_model.py "$folder/new" --family gpt2 --dataset_path "$folder/data.txt" --vocab_size 300 --n_layer 1 \
    --n_embd 16 --n_head 2
python train.py --from_scratch --model "$folder/new" --dataset_path "$folder/data.txt" --dataset_cache "" --lr 1e-2 \
    --n_epochs 40 --save_every 0 --device cpu --output_dir "$folder/run" 2> "$folder/train.txt" ||
    { cat "$folder/train.txt"; exit 1; }

check() { # check NAME "ARGUMENTS" PATTERN: runs a command of ParlAI, whose output must have a line of the pattern
    echo "== python -m parlai $1"
    local output=$folder/$1.txt status=0
    # shellcheck disable=SC2086
    python -m parlai "$1" -m convai_evaluation:TransformerAgent --model-checkpoint "$folder/run" --no-sample $2 \
        > "$output" 2>&1 || status=$?
    if [ "$status" != 0 ] || grep -q Traceback "$output" || ! grep -E "$3" "$output"; then
        cat "$output"
        echo "error: python -m parlai $1 ended with status $status, or not with what it should print" >&2
        exit 1
    fi
}

data="-t fromfile:fbformat --fromfile-datapath $folder/data.txt"
check eval_model "$data --eval-type hits@1 ppl f1" '^\{.*"f1": [0-9.e-]+.*"hits@1": [0-9.]+.*"ppl": [0-9.]+'
check display_model "$data" '^ +model: i have a cat \.$'
check self_chat "--selfchat-max-turns 2 --outfile $folder/chat" '\[TransformerAgent_2\]: *[^ ]'
