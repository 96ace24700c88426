#!/usr/bin/env bash
# Fetches models and datasets ahead of time; ./download_resources.sh --help says which and how.
# The work is done by self_ensemble/cli/download.py: here it is only found a Python that can run it.
# PYTHON names one; otherwise the first of python and python3 that is new enough.
set -euo pipefail

folder=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

candidates=(python python3)
if [[ -n "${PYTHON:-}" ]]; then
  candidates=("$PYTHON")
fi
for python in "${candidates[@]}"; do
  if is_new_enough "$python"; then
    PYTHONPATH="$folder${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m self_ensemble.cli.download "$@"
  fi
done
echo "error: Python 3.11 or newer is needed, and ${candidates[*]} is not: install it, or name it with PYTHON=..." >&2
exit 2
