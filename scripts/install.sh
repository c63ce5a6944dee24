#!/usr/bin/env bash
# install.sh EXTRAS [TORCH_INDEX]: stategate[EXTRAS] in pinned versions, into the environment $VENV.
set -euo pipefail
test -x "$VENV/bin/python" || "${PYTHON:-python3}" -m venv "$VENV"
echo "installing stategate[$1] with pinned versions"
pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
# pip's own torch for Linux holds CUDA; the CPU builds are taken where they can be reached.
index=$("$VENV/bin/python" scripts/torch_index.py ${2:+"$2"})
"${pip[@]}" -c constraints.txt ${index:+--extra-index-url "$index"} -e ".[$1]"
# These pin other versions of what is installed already, and work with ours.
case $1 in test | dev) "${pip[@]}" --no-deps -r tests/no-deps.txt ;; esac
