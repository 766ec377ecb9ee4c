#!/usr/bin/env bash
# Workers of one sweep as a SLURM array, one GPU each:
#
#   ezm sweep run sweeps/task_scaling.yaml --storage "$STORAGE"     # anywhere: begins it, and works too
#   STORAGE=postgresql://me@host/sweeps MLFLOW_TRACKING_URI=http://host:5000 sbatch sweeps/slurm.sh task-scaling
#
# A worker stops when every trial has ended. Preempted, it gives its trial back (SIGTERM); killed, another
# worker takes the trial over after two minutes of silence, from its checkpoint where mlruns/ is shared.
# Without SLURM, `bash sweeps/slurm.sh NAME` is one such worker on this machine.
#SBATCH --job-name=ezm-sweep
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
name=${1:?which sweep? bash sweeps/slurm.sh NAME}
ezm=${EZM:-.venv/bin/ezm}
# SLURM sets CUDA_VISIBLE_DEVICES to the GPU of this task. `exec`: its signals reach the worker itself.
# shellcheck disable=SC2086
exec $ezm sweep worker "$name" ${STORAGE:+--storage "$STORAGE"}
