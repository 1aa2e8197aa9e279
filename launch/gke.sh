#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster, from this machine, through xpk (pip install xpk) and docker.
#   ./launch/gke.sh [--dry-run] run | logs | status | stop
#
#   run      builds an image of this checkout (commit and diff) and starts the command on every worker
#            of a slice, which the cluster makes or hands out; the same RUN resumes
#   logs     follows the output of worker 0 (kubectl must know the cluster)
#   status   the workload, step and last checkpoint of the run
#   stop     deletes the workload; the workers save first (the run can be resumed)
#
# Variables: CLUSTER, ZONE, PROJECT, TYPE (such as v5litepod-16), BUCKET (gs://..), RUN (id of the run,
# its folder is BUCKET/runs/RUN), STAGE (train_sft, train_rl, evaluate), CONFIG (such as
# configs/qwen3vl_4b_rl.py), ARGS (further flags, such as --config.init_from=gs://..); MODEL and POOL:
# gs:// folders of the weights and of the pool, copied to every worker when it starts. NAME of the
# workload (default: of RUN), IMAGE: what the image is built on (default python:3.12), RESTARTS after
# preemptions and lost nodes (default 20), COMPILED: where compiled programs are kept, so that a run
# that is started again need not compile them (default BUCKET/compiled, for all runs; "": nowhere),
# SPOT=1 if wanted. --dry-run prints the commands, runs none, needs neither xpk nor docker. Not tried
# on a cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/_run.sh
begin launch/gke.sh run logs status stop -- "$@"

need CLUSTER ZONE PROJECT RUN
name=${NAME:-$(printf '%s' "${RUN:-}" | tr 'A-Z._' 'a-z--')}
case $name in
  [a-z]*[!a-z0-9-]* | [!a-z]* | *-)
    faults+=("NAME=$name: a workload's name has a-z, 0-9 and -, a letter first; set NAME") ;;
esac
[ ${#name} -le 39 ] || faults+=("NAME=$name has ${#name} letters, at most 39 are allowed; set NAME")
[ "$command" != status ] || need BUCKET
if [ "$command" = run ]; then
  need TYPE
  check_run
  check_buckets
fi
if [ -z "$dry" ]; then
  programs=(xpk)
  [ "$command" != logs ] || programs=(kubectl)
  [ "$command" != run ] || programs+=(docker)
  [ "$command" != status ] || programs+=(gcloud)
  for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || faults+=("$program is not installed; --dry-run needs none")
  done
fi
refuse_faults

where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
case $command in
  run)
    snapshot
    name_new_files
    tree=$code/tree # what the image gets
    mkdir "$tree"
    apart checkout-index --all --prefix="$tree/"
    line="rmsd_jax.$STAGE --config=$CONFIG --workdir=$BUCKET/runs/$RUN"
    line+=" --config.model.folder=model --config.data.pool=pool ${ARGS:-}"
    spot=()
    [ -z "${SPOT:-}" ] || spot=(--spot)
    # Half an hour: a trainer saves behind the step that is under way when it is told to end.
    do_ xpk workload create "${where[@]}" --workload="$name" --tpu-type="$TYPE" ${spot[@]+"${spot[@]}"} \
      --base-docker-image="${IMAGE:-python:3.12}" --script-dir="$tree" \
      --max-restarts="${RESTARTS:-20}" --termination-grace-period-seconds=1800 \
      --command="env JAX_COMPILATION_CACHE_DIR=${COMPILED-$BUCKET/compiled} bash launch/_container.sh $MODEL $POOL $line"
    ;;
  logs)
    do_ kubectl logs --follow --tail=200 --container=jax-tpu \
      --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
    ;;
  status)
    do_ xpk workload list "${where[@]}" --filter-by-job="^$name\$"
    progress
    ;;
  stop) do_ xpk workload delete "${where[@]}" --workload="$name" --force ;;
esac
