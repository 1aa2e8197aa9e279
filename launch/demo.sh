#!/usr/bin/env bash
# The whole method from nothing on one CPU: environment, pool, both stages, evaluation, report.
#   ./launch/demo.sh [WORKDIR] [--config=configs/demo_long.py]    WORKDIR: default runs/demo
# An interrupted demo goes on where it stopped.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,4s/^# \{0,1\}//p' launch/demo.sh
  exit 0
fi

workdir=runs/demo
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  case $1 in /*) workdir=$1 ;; *) workdir=$here/$1 ;; esac
  shift
fi

source launch/_env.sh
env_install requirements.txt
exec .venv/bin/python -m rmsd_jax.demo.run "$workdir" "$@"
