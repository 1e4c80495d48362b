#!/usr/bin/env bash
# Write the *.lock files from the requirements*.txt: every package that these bring along, with its version and the hashes
# of its files for all platforms and for every Python that pyproject.toml allows. Needs the network, takes seconds.
#
#   bash scripts/lock.sh [--upgrade]        versions stay as they are in the files, unless they no longer fit
#
# PyTorch is left out, and with it the CUDA libraries and Triton, which only its CUDA build asks for: the build for CPUs has
# other files, hence other hashes, and its users should not download gigabytes. Its version stands in requirements.txt, and
# its metadata pins the libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

compile() { # compile LOCK [arguments]
    "$folder/venv/bin/uv" pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
        --custom-compile-command "bash scripts/lock.sh" --output-file "$@"
}

lock() { # lock LOCK [arguments]
    local packages package left_out=()
    cp "$1" "$folder/lock.txt" 2> /dev/null || true # the versions to keep
    compile "$folder/lock.txt" "${@:2}"
    packages=$(grep -oE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)=' "$folder/lock.txt" || true)
    for package in $packages; do
        left_out+=(--no-emit-package "${package%=}")
    done
    compile "$1" "${@:2}" --generate-hashes "${left_out[@]}"
    rm "$folder/lock.txt"
}

# One resolution serves users and developers: the smaller lock takes its versions from the larger one.
lock requirements-dev.lock requirements.txt requirements-hub.txt requirements-gguf.txt requirements-dev.txt \
    --constraints requirements-parlai.txt "$@"
lock requirements.lock requirements.txt --constraints requirements-dev.lock
lock requirements-parlai.lock requirements-parlai.txt --no-deps
