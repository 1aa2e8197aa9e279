#!/usr/bin/env bash
# Makes the environment if need be, then runs linter, format and type checks and the tests on the CPU.
#   ./launch/test.sh                        everything but the slow tests, files side by side
#   ./launch/test.sh tests/method/test_losses.py   further arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,4s/^# \{0,1\}//p' launch/test.sh
  exit 0
fi

source launch/_env.sh
env_install requirements.txt tests/requirements.txt
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
[ $# -gt 0 ] || set -- --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
exec .venv/bin/python -m pytest "$@"
