#!/bin/sh
# All GPU work on a machine with an NVIDIA GPU and no network, in calls of under nine minutes:
#
#   benchmarks/gpu_campaign.sh OUT [--checkpoint FILE] [--seconds N]
#
# Call again while it exits with 75; results are in OUT/campaign.json, .md and .png. Exits with 0 when
# everything ran and passed, 1 when something failed, 3 on a machine without a GPU.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
[ $# -ge 1 ] || { echo "usage: $0 OUT [--checkpoint FILE] [--seconds N]" >&2; exit 2; }
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
# The package's folders are subpackages of pikfix: without an install, a folder of links is one.
if ! "$python" -c "import pikfix.export" 2>/dev/null; then
    links=$(mktemp -d)
    trap 'rm -rf "$links"' EXIT
    mkdir "$links/pikfix"
    for folder in cli client evaluation export kernels model_repository networks photos references \
        serving training; do
        ln -s "$root/$folder" "$links/pikfix/$folder"
    done
    PYTHONPATH=$links${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
fi
"$python" "$root/benchmarks/gpu_campaign.py" "$@"
