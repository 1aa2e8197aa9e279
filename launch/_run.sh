# Sourced by the scripts that start runs elsewhere: their command line, checks and the code they send.

# begin SCRIPT COMMAND... -- ARGUMENTS: reads [--dry-run] COMMAND into $dry and $command; --help
# prints the head of SCRIPT. $faults collects what is wrong, so that all of it is seen at once.
begin() {
  local script=$1 known=() name found=""
  shift
  while [ "$1" != -- ]; do
    known+=("$1")
    shift
  done
  shift
  dry="" faults=() command=""
  for name in "$@"; do # in any order: what is not understood here would be run for real
    case $name in
      --dry-run) dry=1 ;;
      --help | -h)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
        exit 0
        ;;
      *)
        if [ -n "$command" ]; then
          echo "error: '$name' behind the command '$command' is not understood; see --help" >&2
          exit 2
        fi
        command=$name
        ;;
    esac
  done
  for name in "${known[@]}"; do
    [ "$command" != "$name" ] || found=1
  done
  if [ -z "$found" ]; then
    printf -v name '%s, ' "${known[@]}"
    echo "error: command '$command' is none of ${name%, }; see --help" >&2
    exit 2
  fi
}

# need NAME...: variables that must be set.
need() {
  local name
  for name in "$@"; do
    [ -n "${!name:-}" ] || faults+=("$name is not set")
  done
}

# What a run is made of: RUN, STAGE, CONFIG.
check_run() {
  need RUN STAGE CONFIG MODEL POOL
  case ${RUN:-x} in *[!A-Za-z0-9._-]*) faults+=("RUN=$RUN: use letters, digits, . _ -") ;; esac
  case ${STAGE:-train_sft} in
    train_sft | train_rl | evaluate) ;;
    *) faults+=("STAGE=$STAGE is none of train_sft, train_rl, evaluate") ;;
  esac
  local file=${CONFIG:-}
  file=${file%%:*}
  if [ -n "$file" ] && [ ! -f "$file" ]; then
    faults+=("CONFIG=$CONFIG: no such file")
  elif [ -n "$file" ] && git check-ignore -q "$file"; then
    faults+=("CONFIG=$CONFIG is ignored by git, so it would not be copied; put it under configs/")
  fi
}

# What the cloud wants besides: BUCKET, and MODEL and POOL in one.
check_buckets() {
  need BUCKET
  local name
  for name in BUCKET MODEL POOL; do
    case ${!name:-gs://} in gs://*) ;; *) faults+=("$name=${!name} does not begin with gs://") ;; esac
  done
}

# progress: step, last checkpoint and parts of an evaluation, by the run's folder in the bucket.
progress() {
  local folder=${BUCKET:-}/runs/${RUN:-}
  [ -z "$dry" ] && [ -n "${RUN:-}" ] || return 0
  {
    gcloud storage cat "$folder/metrics.jsonl" | tail -n 1 | sed -n 's/.*"step": \([0-9]*\).*/step \1/p'
    gcloud storage ls "$folder/checkpoints/" | sed -n 's|.*/\([0-9]\{1,\}\)/$|\1|p' | sort -n | tail -n 1 |
      sed 's/^/checkpoint /'
    gcloud storage ls "$folder/evaluate/*/part-*" | wc -l | sed 's/^ */parts /'
  } 2>/dev/null || true # what is not there is not told
}

# Ends with exit status 2 where there are faults.
refuse_faults() {
  [ ${#faults[@]} -gt 0 ] || return 0
  printf 'error: %s\n' "${faults[@]}" >&2
  exit 2
}

# schema_of_pools: what this checkout reads.
schema_of_pools() { sed -n 's/^SCHEMA = \([0-9]*\).*/\1/p' rmsd_jax/data/store.py; }

show() {
  printf '%s' "+"
  printf ' %q' "$@"
  printf '\n'
}

# do_ COMMAND...: prints it; runs it unless --dry-run was given.
do_() {
  show "$@"
  [ -n "$dry" ] || "$@"
}

# snapshot: the code that runs is the commit and what differs from it, new files too. They are put
# into an index and objects of our own, in the folder $code, so that this checkout's git stays as it
# is; `apart COMMAND...` is git with those.
snapshot() {
  code=$(mktemp -d)
  trap 'rm -rf "$code"' EXIT
  objects=$(git rev-parse --path-format=absolute --git-path objects)
  mkdir "$code/objects"
  apart read-tree HEAD
  apart add --all -- .
}

apart() {
  GIT_INDEX_FILE=$code/index GIT_OBJECT_DIRECTORY=$code/objects \
    GIT_ALTERNATE_OBJECT_DIRECTORIES=$objects git "$@"
}

name_new_files() {
  local new
  new=$(git ls-files --others --exclude-standard -- .)
  [ -z "$new" ] || printf 'new files that are copied too:\n%s\n' "$new"
}
