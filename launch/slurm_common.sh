# What the Slurm templates share. They set the variables, source this file and call run_job; nothing here needs changing.

refuse() {
  echo "alignlab: $*" >&2
  exit 2
}

# The words of a job: [--dry-run] CONFIG [--key value ...] -> dry_run, arguments.
read_words() {
  dry_run=0
  if [[ "${1:-}" == --dry-run ]]; then
    dry_run=1
    shift
  fi
  arguments=("$@")
  if (($# == 0)) || [[ "$1" == -* ]]; then
    refuse "which config? sbatch launch/${TEMPLATE:-TEMPLATE.sbatch} CONFIG.yaml [--key value ...]"
  fi
}

# What one task runs, for TASK=train, score, eval, rounds or search (whose task starts trials, not ranks of its own).
task_command() {
  local python="${VENV:+$VENV/bin/}python"
  case "$TASK" in
    train) command=("$python" -m alignlab train "${arguments[@]}" --output_dir "$RUN_DIR" --resume_from_checkpoint auto) ;;
    score) command=("$python" -m alignlab score "${arguments[@]}" --output_dir "$RUN_DIR") ;;
    eval) command=("$python" -m alignlab eval "$RUN_DIR" --data "$EVAL_DATA" --output "$RUN_DIR/eval.json") ;;
    rounds) command=("$python" -m alignlab rounds "${arguments[@]}" --stage "${STAGE:?of the loop: 1/sample, say}") ;;
    search) command=("$python" -m) ;;
    *) refuse "TASK is '$TASK'; allowed: train, score, eval, rounds, search" ;;
  esac
  if [[ "$TASK" == eval && -z "$EVAL_DATA" ]]; then
    refuse "TASK=eval needs EVAL_DATA, the file to evaluate on"
  fi
}

# How every task is started. DeepSpeed and DDP find their ranks in the environment: no ssh, no launcher of their own.
step_command() {
  local where=() wrap=() tasks=()
  case "$CONTAINER" in
    "") ;;
    pyxis:*) where=(--container-image="${CONTAINER#pyxis:}" --container-mounts="$CONTAINER_MOUNTS" --container-workdir="$PWD") ;;
    *) wrap=(apptainer exec --nv --bind "$CONTAINER_MOUNTS" "$CONTAINER") ;;
  esac
  if [[ "$TASK" == eval || ("$TASK" == rounds && "$STAGE" =~ /(pair|reference)$) ]]; then
    tasks=(--nodes=1 --ntasks=1)
  fi
  # Single quotes: each task must expand its own rank, not the batch script's.
  # shellcheck disable=SC2016
  local ranks='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"'
  # Since Slurm 22.05 srun does not inherit the CPUs of a task.
  local output=(--output="$log")
  [[ "$TASK" == search ]] && output=() # each trial has a log of its own
  step=(srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${tasks[@]}" "${where[@]}"
    "${output[@]}" bash -c "$ranks" rank "${wrap[@]}" "${command[@]}")
}

# A worker of a search runs beside Slurm's steps and starts one for each trial, with every rank of the job.
worker_command() {
  if [[ -n "$CONTAINER" && "$CONTAINER" != pyxis:* ]]; then
    refuse "TASK=search starts srun from a worker, which an apptainer image has not; use VENV, or pyxis"
  fi
  # shellcheck disable=SC2016
  step=(bash -c 'exec "$@" >>"$0" 2>&1' "$log" "${VENV:+$VENV/bin/}python" -m alignlab sweep "${arguments[@]}"
    --launcher "$(printf '%q ' "${step[@]}")")
}

# Jobs that share a node must not share a port: 20000 to 29999, by the job's number.
choose_meeting_place() {
  if [[ -z "${MASTER_ADDR:-}" ]]; then
    MASTER_ADDR=127.0.0.1
    if ((${SLURM_NNODES:-1} > 1)); then
      MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    fi
  fi
  export MASTER_ADDR MASTER_PORT="${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}"
}

# Every node must see the same folder, an alignlab that imports, and its GPUs; better said now than by a hung run.
preflight() {
  local token="$RUN_DIR/.preflight-${SLURM_JOB_ID:-0}" free
  mkdir -p "$RUN_DIR/logs"
  free=$(df --output=avail -BG "$RUN_DIR" | tail -n 1 | tr -dc 0-9)
  if ((free < MIN_FREE_GB)); then
    refuse "preflight: $RUN_DIR has $free GB free, MIN_FREE_GB asks for $MIN_FREE_GB"
  fi
  echo "${SLURM_JOB_ID:-0}" >"$token"
  # shellcheck disable=SC2016
  local check='
    token=$1 job=$2 gpus=$3 python=$4
    fail() { echo "alignlab: preflight: $(hostname): $*" >&2; exit 3; }
    [[ "$(cat "$token" 2>/dev/null)" == "$job" ]] || fail "sees no $token: RUN_DIR must be on a disk that all nodes share"
    if ((gpus > 0)); then
      found=$(nvidia-smi --list-gpus 2>/dev/null | grep -c "^GPU") || true
      ((found >= gpus)) || fail "has $found working GPUs, $gpus were asked for"
    fi
    if [[ -n "$python" ]]; then
      "$python" -c "import alignlab" || fail "$python cannot import alignlab"
    fi'
  local python=""
  if [[ -z "$CONTAINER" ]]; then
    python="${VENV:+$VENV/bin/}python"
  fi
  if ! srun --ntasks="${SLURM_NNODES:-1}" --ntasks-per-node=1 bash -c "$check" preflight \
    "$token" "${SLURM_JOB_ID:-0}" "${GPUS##*:}" "$python"; then
    rm -f "$token"
    exit 3
  fi
  rm -f "$token"
}

# Slurm sends USR1 some minutes before the time is up (--signal), and TERM on preemption. srun hands the signal to every
# task; the trainer saves a checkpoint at the end of the step and exits with 75.
forward() {
  early=$((early + 1))
  echo "told to stop early: saving a checkpoint"
  kill -USR1 "$task" 2>/dev/null || true
}

# Requeues the job, unless it used up its restarts or was cancelled.
requeue() {
  local restarts=${SLURM_RESTART_COUNT:-0}
  if [[ "$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)" != RUNNING ]]; then
    echo "not requeueing: the job was cancelled or is being requeued already" >&2
  elif ((restarts >= MAX_RESTARTS)); then
    echo "not requeueing: $MAX_RESTARTS restarts are used up" >&2
  else
    echo "requeueing (restart $((restarts + 1)) of at most $MAX_RESTARTS)"
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

# This array job's loss and beta: betas vary fastest.
choose_of_grid() {
  local losses betas index=${SLURM_ARRAY_TASK_ID:-0}
  read -ra losses <<<"$LOSSES"
  read -ra betas <<<"$BETAS"
  local count=$((${#losses[@]} * ${#betas[@]}))
  if ((index >= count)); then
    refuse "job $index of the array has nothing to do: ${#losses[@]} losses x ${#betas[@]} betas are --array=0-$((count - 1))"
  fi
  loss=${losses[index / ${#betas[@]}]} beta=${betas[index % ${#betas[@]}]}
  TASK=train EVAL_DATA="" RUN_DIR="$SWEEP_DIR/$loss-$beta"
}

run_job() {
  read_words "$@"
  task_command
  choose_meeting_place
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}" PYTHONUNBUFFERED=1
  log="$RUN_DIR/logs/$TASK-${SLURM_JOB_ID:-0}-restart-${SLURM_RESTART_COUNT:-0}.log"
  step_command
  if [[ "$TASK" == search ]]; then
    worker_command
  fi
  if ((dry_run)); then
    echo "MASTER_ADDR=$MASTER_ADDR MASTER_PORT=$MASTER_PORT OMP_NUM_THREADS=$OMP_NUM_THREADS"
    printf '%q ' "${step[@]}"
    echo
    exit 0
  fi
  preflight
  echo "log of all ranks: $log"
  local seen
  early=0 task=
  trap forward USR1 TERM
  "${step[@]}" &
  task=$!
  while :; do
    seen=$early status=0
    wait "$task" || status=$?
    ((early == seen)) && break # else a trapped signal ended `wait`, not the task
  done
  if ((status == 75 || (early && status != 0))); then
    requeue
  fi
  exit "$status"
}
