#!/usr/bin/env bash
# One task per GPU on several nodes: sbatch experiments/slurm.sh SPEC [--set A.B=C ...]
# The folder it is submitted from, with its mlruns/, must be visible from all nodes.
#SBATCH --job-name=ezm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=ezm-%j.out

set -euo pipefail
spec=${1:?usage: sbatch experiments/slurm.sh SPEC [--set A.B=C ...]}
shift
# SIGTERM, two minutes before the end, has the run saved; sbatch it again with --resume last.
exec srun --kill-on-bad-exit=1 .venv/bin/python -m ezm_pl train "$spec" \
  --set trainer.num_nodes="$SLURM_NNODES" --set trainer.devices="$SLURM_NTASKS_PER_NODE" \
  --set trainer.strategy=ddp "$@"
