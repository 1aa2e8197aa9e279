#!/usr/bin/env bash
# A run on the GPUs of a Slurm cluster, from a login node that shares its files with the nodes.
#   ./launch/gpu_slurm.sh [--dry-run] setup | run | logs | status | stop
#
#   setup    makes this checkout's environment, with CUDA; once, and again when requirements change
#   run      submits a job; the same RUN resumes. The job runs a copy of this checkout as it is now.
#            Near its time limit, or when it is preempted, a trainer saves and queues again, for as
#            long as each job makes a new checkpoint
#   logs     follows the output
#   status   the job in the queue, and its last step
#   stop     saves and ends the job (the run can be resumed)
#
# Variables: RUNS (a folder that all nodes see), RUN (id of the run, its folder is RUNS/RUN), STAGE
# (train_sft, train_rl, evaluate), CONFIG (such as configs/qwen3vl_4b_rl.py, to evaluate
# configs/eval/qwen3vl.py), MODEL and POOL (folders of the weights and of the pool), ARGS (further
# flags, as shell text, such as --config.init_from=..); NODES (default 1), GPUS (of a node, default
# 8; 0: the run is on CPUs), CPUS (of a node, default 8 a GPU; 0: as the cluster gives them), TIME
# (of one job, default 24:00:00), SBATCH (further flags of sbatch, such as "--account=a
# --partition=p"). COMPILED: where programs compiled for GPUs are kept, so that a job that goes on need
# not compile them (default RUNS/compiled; "": nowhere). --dry-run prints every command and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/_run.sh
source launch/_env.sh
begin launch/gpu_slurm.sh setup run logs status stop -- "$@"

nodes=${NODES:-1} gpus=${GPUS:-8} platform=cuda
cpus=${CPUS:-$((10#0${gpus//[!0-9]/} * 8))} # for the data workers: many clusters give a process one
compiled=${COMPILED-${RUNS:-}/compiled}
[ "$gpus" != 0 ] || platform=cpu compiled="" # nodes may have other CPUs than the one compiled for

check_folders() {
  local name
  for name in RUNS MODEL POOL COMPILED; do
    case ${!name:-/} in
      *\'*) faults+=("$name=${!name} has a quote in it") ;;
      /*) ;;
      *) faults+=("$name=${!name} is not an absolute path") ;;
    esac
  done
  [ -z "$dry" ] || return 0 # no folder is needed for that
  [ -z "${MODEL:-}" ] || [ -f "$MODEL/config.json" ] || faults+=("MODEL=$MODEL has no config.json")
  [ -z "${POOL:-}" ] ||
    grep -qsE "\"schema\": $(schema_of_pools)([^0-9]|$)" "$POOL/metadata.json" ||
    faults+=("POOL=$POOL is no pool of schema $(schema_of_pools); build it with this checkout")
}

check_size() {
  local name value
  for name in nodes gpus cpus; do
    value=${!name}
    case $value in '' | *[!0-9]*) faults+=("${name^^}=$value: give a number") ;; esac
  done
  [ "$nodes" != 0 ] || faults+=("NODES=0: give 1 or more")
}

case $command in
  run)
    need RUNS
    check_run
    check_folders
    check_size
    [ -n "$dry" ] || [ -x .venv/bin/python ] || faults+=("there is no .venv; run setup first")
    ;;
  logs | status | stop)
    need RUNS RUN
    [ -n "$dry" ] || [ -z "${RUNS:-}" ] || [ -z "${RUN:-}" ] || [ -f "$RUNS/$RUN/job" ] ||
      faults+=("$RUNS/$RUN holds no run of this script")
    ;;
esac
if [ -z "$dry" ] && [ "$command" != setup ] && [ "$command" != logs ]; then
  command -v sbatch >/dev/null || faults+=("sbatch is not here; this is for a login node of Slurm")
fi

folder=${RUNS:-}/${RUN:-}
job() { cat "$folder/job" 2>/dev/null || echo JOB; } # the id of the last one
queued() { squeue --noheader --format="%i %T %M %R" --jobs="$(job)" 2>/dev/null || true; }
if [ "$command" = run ] && [ -z "$dry" ] && [ -f "$folder/job" ] && [ -n "$(queued)" ]; then
  faults+=("job $(job) of RUN=$RUN is in the queue or runs; stop it first")
fi
refuse_faults

# What a job does, on its first node and (step) on each: one process a node, with all its GPUs.
job_script() {
  cat <<JOB
#!/usr/bin/env bash
trap : TERM # what srun starts gets it too, saves and ends
cd '$folder/code'
export JAX_PLATFORMS=$platform RMSD_PROCESSES=\$SLURM_NNODES
host=\$(scontrol show hostnames "\$SLURM_JOB_NODELIST" | head -n 1)
export JAX_COORDINATOR_ADDRESS=\$host:\$((61440 + SLURM_JOB_ID % 4096))
export JAX_COMPILATION_CACHE_DIR='$compiled'
# Which srun does not take over from the job.
[ -z "\${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=\$SLURM_CPUS_PER_TASK
before=\$(ls '$folder/checkpoints' 2>/dev/null)
srun bash '$folder/step.sh'
status=\$?
if [ \$status -eq 143 ] && [ ! -e '$folder/stopped' ] &&
  [ "\$(ls '$folder/checkpoints' 2>/dev/null)" != "\$before" ]; then
  echo 'this job ends here and queues again'
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$status
JOB
}

step_script() {
  cat <<STEP
RMSD_PROCESS=\$SLURM_PROCID exec .venv/bin/python -m rmsd_jax.$STAGE \\
  --config=$CONFIG --workdir='$folder' \\
  --config.model.folder='$MODEL' --config.data.pool='$POOL' ${ARGS:-}
STEP
}

case $command in
  setup)
    [ -n "$dry" ] || env_install requirements.txt
    if [ "$gpus" != 0 ]; then
      do_ .venv/bin/python -m pip install --quiet "jax[cuda12]==$(sed -n 's/^jax==//p' requirements.txt)"
    fi
    ;;
  run)
    flags=(--parsable --requeue --open-mode=append --job-name="$RUN" --output="$folder/log"
      --nodes="$nodes" --ntasks-per-node=1 --time="${TIME:-24:00:00}" --signal=TERM@600)
    [ "$gpus" = 0 ] || flags+=(--gpus-per-node="$gpus")
    [ "$cpus" = 0 ] || flags+=(--cpus-per-task="$cpus")
    read -ra more <<<"${SBATCH:-}"
    submit=(sbatch "${flags[@]}" ${more[@]+"${more[@]}"} "$folder/job.sh")
    if [ -n "$dry" ]; then
      printf 'job.sh:\n%s\n\nstep.sh:\n%s\n\n' "$(job_script)" "$(step_script)"
      do_ "${submit[@]}"
      exit 0
    fi
    snapshot
    name_new_files
    rm -rf "$folder/code" "$folder/stopped"
    mkdir -p "$folder"
    apart checkout-index --all --prefix="$folder/code/"
    ln -s "$PWD/.venv" "$folder/code/.venv"
    job_script >"$folder/job.sh"
    step_script >"$folder/step.sh"
    show "${submit[@]}"
    id=$("${submit[@]}")
    echo "${id%%;*}" >"$folder/job" # the rest is the name of a cluster
    echo "job $(job) is in the queue"
    ;;
  logs) do_ tail -n 200 -F "$folder/log" ;;
  status)
    do_ bash -c "squeue --jobs='$(job)' 2>/dev/null || echo 'not in the queue'"
    do_ bash -c "tail -n 1 '$folder/metrics.jsonl' 2>/dev/null | cut -c -200 | grep . || tail -n 3 '$folder/log'"
    ;;
  stop)
    do_ touch "$folder/stopped" # so that it does not queue again
    do_ scancel --state=PENDING "$(job)"
    do_ scancel --state=RUNNING --signal=TERM "$(job)"
    ;;
esac
