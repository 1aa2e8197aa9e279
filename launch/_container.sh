#!/usr/bin/env bash
# What a container of launch/gke.sh runs: the environment, weights and pool, then the command.
#   launch/_container.sh MODEL POOL MODULE ARGUMENT...     MODEL and POOL are gs:// folders
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_env.sh
env_install requirements.txt
.venv/bin/python -m pip install --quiet "jax[tpu]==$(sed -n 's/^jax==//p' requirements.txt)"
.venv/bin/python - "$1" model "$2" pool <<'PY'
import shutil, sys

import gcsfs

files = gcsfs.GCSFileSystem()
for source, target in (sys.argv[1:3], sys.argv[3:5]):
  shutil.rmtree(target, ignore_errors=True)  # of a container that was started again
  print(f"copying {source}", flush=True)
  files.get(source.rstrip("/") + "/", target + "/", recursive=True)
PY
shift 2
# exec: the signal that asks to save must reach Python.
exec env RMSD_PROCESSES=auto PYTHONFAULTHANDLER=1 .venv/bin/python -m "$@"
