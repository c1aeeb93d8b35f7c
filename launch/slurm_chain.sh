#!/usr/bin/env bash
# Submits three jobs, each waiting for the one before: score the reference, train, evaluate.
#
#   bash launch/slurm_chain.sh [--dry-run] CONFIG.yaml [--key value ...]
#
# Training then never loads a reference, and a sweep over the same data can start from the scores as well.
set -euo pipefail

# ---- what you may want to change (or give in the environment) ------------------------------------------------------
SBATCH="${SBATCH:-sbatch}"          # with options for all three: "sbatch --partition gpu --gpus-per-node 4"
TEMPLATE="${TEMPLATE:-slurm_one_node.sbatch}" # or slurm_many_nodes.sbatch
RUN_DIR="${RUN_DIR:-runs/alignlab-chain-$(date +%Y%m%d-%H%M%S)}" # on a disk that outlives the jobs
EVAL_DATA="${EVAL_DATA:-}"          # the pairs to measure on; empty: two jobs, training evaluates as its config says

# ---- from here on nothing needs changing -----------------------------------------------------------------------------
launch=$(cd "$(dirname "$0")" && pwd)
export CHECKOUT="${CHECKOUT:-$launch/..}" RUN_DIR EVAL_DATA
dry_run=0
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=1
  shift
fi
if (($# == 0)) || [[ "$1" == -* ]]; then
  echo "alignlab: which config? bash launch/slurm_chain.sh CONFIG.yaml [--key value ...]" >&2
  exit 2
fi
tasks=(score train)
if [[ -n "$EVAL_DATA" ]]; then
  tasks+=(eval)
fi

read -ra sbatch <<<"$SBATCH"
before=""
for task in "${tasks[@]}"; do
  # afterok: a job that requeues itself has not ended; one that fails takes those behind it from the queue.
  command=("${sbatch[@]}" --parsable --job-name="alignlab-$task" ${before:+"--dependency=afterok:$before" --kill-on-invalid-dep=yes}
    "$launch/$TEMPLATE" "$@")
  if ((dry_run)); then
    before="JOB-OF-${task^^}"
    printf '%q ' env TASK="$task" RUN_DIR="$RUN_DIR" "${command[@]}"
    echo
  else
    before=$(TASK="$task" "${command[@]}")
    before=${before%%;*} # on clusters of clusters: job;cluster
    echo "$task $before"
  fi
done
