#!/usr/bin/env bash
# A run on a Cloud TPU slice of any size, from this machine, through gcloud.
#   ./launch/tpu_vm.sh [--dry-run] create | setup | run | logs | status | stop | abort | down
#   ./launch/tpu_vm.sh supervise
#
#   create   the slice: a TPU VM, or with QUEUED=1 a queued resource
#   setup    copies this checkout (commit and diff) to every worker and makes the environment there
#   run      starts the command on every worker, in the background; the same RUN resumes. The
#            workers' output is kept in BUCKET/runs/RUN/logs, every five minutes and at the end
#   logs     follows the output of worker 0
#   status   the slice, whether the command runs on each worker, step and last checkpoint of the run
#   stop     saves and ends the command on every worker (the run can be resumed)
#   abort    ends it at once, with the stacks of its threads in each worker's log
#   down     deletes the slice
#   supervise  all of these until the run is done: makes the slice anew after a preemption, starts
#            the run again when it fails, hangs or loses a worker, and ends at a crash loop. STEP_LIMIT
#            (minutes without a step, default 30), START_LIMIT (to the first, 90), MAX_HOURS of the
#            slice (none), PRICE of an hour (to tell what it cost), POLL (seconds, 60), DOWN=1 to
#            delete the slice at the end.
#
# Variables: NAME, ZONE, PROJECT, TYPE (such as v5litepod-16), VERSION (runtime, such as
# v2-alpha-tpuv5-lite), BUCKET (gs://..), RUN (id of the run, its folder is BUCKET/runs/RUN), STAGE
# (train_sft, train_rl, evaluate), CONFIG (such as configs/qwen3vl_4b_rl.py, to evaluate
# configs/eval/qwen3vl.py), ARGS (further flags, such as --config.init_from=gs://..); MODEL and POOL:
# gs:// folders of the weights and of the pool, copied to every worker by `setup`; QUEUED=1, SPOT=1
# if wanted. PYTHON: the workers' interpreter, 3.11 or later (default python3.11; `setup` installs its
# apt package where it is missing). COMPILED: where compiled programs are kept, so that a run that is
# started again need not compile them (default BUCKET/compiled, for all runs; "": nowhere). REPORT: a
# file that rmsd_jax.compile wrote with --json; `create` refuses a report whose programs do not fit,
# or that is of other chips than TYPE. --dry-run prints every command, runs none, needs no gcloud.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/_run.sh
begin launch/tpu_vm.sh create setup run logs status stop abort down probe supervise -- "$@"

check_report() {
  [ -n "${REPORT:-}" ] || return 0
  if [ ! -f "$REPORT" ]; then
    faults+=("REPORT=$REPORT: no such file; write it with python -m rmsd_jax.compile --json=FILE")
    return 0
  fi
  local said
  said=$(python3 - "$REPORT" "${TYPE:-}" <<'PY' 2>/dev/null
import json, sys
report = json.load(open(sys.argv[1]))
limit = report["chip"]["memory"] * 2**30
kind, _, size = sys.argv[2].rpartition("-")
kind = {"v5litepod": "v5e"}.get(kind, kind)
devices = int(size) // (2 if kind in ("v4", "v5p") else 1)  # those names count cores, two a chip
said = []
if report["topology"].partition(":")[0] != kind:
  said.append(f"is of {report['topology']}, TYPE={sys.argv[2]} is {kind}")
if report["devices"] != devices:
  said.append(f"is of {report['devices']} devices, TYPE={sys.argv[2]} has {devices}")
bad = [p["name"] for p in report["programs"] if not 0 < p["peak"] <= limit]
if bad:
  said.append(f"{', '.join(bad)} does not fit {report['topology']}")
print("; ".join(said))
PY
  ) || said="is not a report of rmsd_jax.compile"
  [ -z "$said" ] || faults+=("REPORT=$REPORT: $said")
}

need NAME ZONE PROJECT
case $command in
  create)
    need TYPE VERSION
    check_report
    ;;
  setup | run)
    check_run
    check_buckets
    ;;
  supervise)
    need TYPE VERSION
    check_report
    check_run
    check_buckets
    [ -z "$dry" ] || faults+=("supervise runs other commands by what it sees; there is no dry run")
    ;;
esac
if [ -z "$dry" ]; then
  command -v gcloud >/dev/null || faults+=("gcloud is not installed; --dry-run needs none")
fi
if [ ${#faults[@]} -eq 0 ] && [ -z "$dry" ] && [ "$command" = run ]; then
  gcloud storage ls "$BUCKET" >/dev/null 2>&1 || faults+=("BUCKET=$BUCKET cannot be listed")
  schema=$(schema_of_pools)
  gcloud storage cat "$POOL/metadata.json" 2>/dev/null | grep -qE "\"schema\": $schema([^0-9]|$)" ||
    faults+=("POOL=$POOL is no pool of schema $schema; build it with this checkout")
fi
refuse_faults

where=(--zone="$ZONE" --project="$PROJECT")
# shellcheck disable=SC2153  # NAME comes from the environment
describe=(gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format="value(state,health)")
[ -z "${QUEUED:-}" ] ||
  describe=(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format="value(state.state)")
on() { # on WORKER COMMAND: runs a shell command on one worker, or on all
  do_ gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

# Commit and diff in $code are the code that runs; $stamp says what a worker was set up with.
pack() {
  snapshot
  git rev-parse HEAD >"$code/commit"
  apart diff --cached HEAD --binary --relative >"$code/diff"
  stamp="$MODEL $POOL $RUN $(cat "$code/commit" "$code/diff" | git hash-object --stdin)"
}

# shellcheck disable=SC2016  # for the workers' shell
state_of_worker='state=gone
if [ -f rmsd/ended ]; then state="ended $(cat rmsd/ended)"
elif [ -f rmsd/pid ] && kill -0 $(cat rmsd/pid) 2>/dev/null; then state=running
elif [ ! -f rmsd/pid ]; then state="not started"; fi
echo "worker $(hostname) $state"'

case $command in
  create)
    spot=()
    [ -z "${SPOT:-}" ] || spot=(--spot)
    if [ -n "${QUEUED:-}" ]; then
      do_ gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
        --accelerator-type="$TYPE" --runtime-version="$VERSION" ${spot[@]+"${spot[@]}"}
    else
      do_ gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
        --accelerator-type="$TYPE" --version="$VERSION" ${spot[@]+"${spot[@]}"}
    fi
    ;;
  setup)
    pack
    name_new_files
    if [ -z "$dry" ]; then
      git archive --format=tar.gz -o "$code/code.tar.gz" HEAD
      if [ "$(wc -c <"$code/diff")" -gt 50000000 ]; then
        echo "error: the changes are over 50 MB; commit, ignore or remove large files:" >&2
        git diff HEAD --stat >&2
        exit 2
      fi
    fi
    python=${PYTHON:-python3.11}
    for file in commit diff code.tar.gz; do
      do_ gcloud storage cp "$code/$file" "$BUCKET/runs/$RUN/code/$file"
    done
    on all "set -e; mkdir -p rmsd; cd rmsd
if [ -f pid ] && kill -0 \$(cat pid) 2>/dev/null; then echo 'a run goes on here; stop it first'; exit 1; fi
if [ \"\$(cat run 2>/dev/null)\" != '$RUN' ]; then rm -f log; fi
need=\$(gcloud storage du --summarize '$MODEL' '$POOL' | awk '{s += \$1} END {printf \"%.0f\", s / 1024}')
there=\$(du -sk model pool 2>/dev/null | awk '{s += \$1} END {printf \"%.0f\", s}')
free=\$(df -Pk . | awk 'NR == 2 {print \$4}')
if [ \"\$need\" -gt \$((there + free)) ]; then
echo \"MODEL and POOL take \$((need >> 20)) GiB, \$(((there + free) >> 20)) are free here: attach a disk, or fewer frames, pixels or records\"; exit 1; fi
find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name log ! -name model ! -name pool -exec rm -rf {} +
gcloud storage cp '$BUCKET/runs/$RUN/code/*' .
echo '$RUN' >run
tar xzf code.tar.gz; if [ -s diff ]; then git apply diff; fi
mkdir -p model pool
gcloud storage rsync --recursive --delete-unmatched-destination-objects '$MODEL' model; gcloud storage rsync --recursive --delete-unmatched-destination-objects '$POOL' pool
if ! $python -c 'import ensurepip' 2>/dev/null; then
apt='sudo apt-get -qq -o DPkg::Lock::Timeout=600'
\$apt update; \$apt install -y $python $python-venv; fi
export PYTHON=$python
source launch/_env.sh; env_install requirements.txt
.venv/bin/python -m pip install --quiet 'jax[tpu]'=='$(sed -n 's/^jax==//p' requirements.txt)'
echo '$stamp' >stamp"
    ;;
  run)
    line="python -m rmsd_jax.$STAGE --config=$CONFIG --workdir=$BUCKET/runs/$RUN"
    line+=" --config.model.folder=model --config.data.pool=pool ${ARGS:-}"
    pack
    on all "cd rmsd
if [ -f pid ] && kill -0 \$(cat pid) 2>/dev/null; then echo 'it runs already'; exit 1; fi
if [ \"\$(cat stamp 2>/dev/null)\" != '$stamp' ]; then
echo 'this worker was not set up with this MODEL, POOL, RUN and code; run setup first'; exit 1; fi
rm -f pid ended
(trap '' HUP
kept='$BUCKET/runs/$RUN/logs/'\$(hostname)-\$(date +%Y%m%d-%H%M%S)
keep() { gcloud storage cp log \$kept; } >/dev/null 2>&1
JAX_COMPILATION_CACHE_DIR='${COMPILED-$BUCKET/compiled}' \\
RMSD_PROCESSES=auto PYTHONFAULTHANDLER=1 .venv/bin/$line & pid=\$!; echo \$pid >pid
(while sleep 300; kill -0 \$pid; do keep; done) 2>/dev/null &
wait \$pid; echo \$? >ended; keep) </dev/null >>log 2>&1 &
until [ -s pid ]; do sleep 0.1; done"
    ;;
  logs) on 0 "tail -n 200 -f rmsd/log" ;;
  status)
    do_ "${describe[@]}"
    on all "$state_of_worker; [ \"\$state\" = running ] || tail -n 3 rmsd/log"
    progress
    ;;
  probe) # for supervise: lines that it reads, see `parse` there
    read -r node _ < <("${describe[@]}" 2>/dev/null) || true
    echo "node ${node:-NONE}"
    progress
    case $node in READY | ACTIVE) on all "$state_of_worker" || true ;; esac
    ;;
  supervise) exec python3 launch/supervise.py ;;
  abort)
    on all "cd rmsd; [ -f pid ] || exit 0
kill -ABRT \$(cat pid) 2>/dev/null
for i in \$(seq 20); do kill -0 \$(cat pid) 2>/dev/null || break; sleep 1; done
kill -KILL \$(cat pid) 2>/dev/null; rm -f pid"
    ;;
  stop)
    # Trainers save and end by TERM, after the step that is under way; an evaluation ends by INT.
    on all "cd rmsd; [ -f pid ] || exit 0
for signal in TERM INT; do
kill -\$signal \$(cat pid) 2>/dev/null
for i in \$(seq 180); do kill -0 \$(cat pid) 2>/dev/null || { rm pid; exit 0; }; sleep 1; done
done
echo 'it still runs after six minutes; kill it by hand'; exit 1"
    ;;
  down)
    if [ -n "${QUEUED:-}" ]; then
      do_ gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
    else
      do_ gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet
    fi
    ;;
esac
