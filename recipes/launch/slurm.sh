#!/bin/bash
# A recipe on Slurm, with a process for each GPU of each machine: sbatch recipes/launch/slurm.sh recipe.yaml
# Not run: written by Slurm's manual, without a cluster to try it on.
#SBATCH --job-name=align
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --open-mode=append
# the batch script itself is asked two minutes before the time is over
#SBATCH --signal=B:TERM@120

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD="$head:29500" RECIPE=$1
# ALIGN_STORE on a disk that all machines share

srun --kill-on-bad-exit=1 bash -c \
  'align launch "$RECIPE" --nodes "$SLURM_NNODES" --node "$SLURM_NODEID" --head "$HEAD" --logs "logs/$SLURM_JOB_ID-$SLURM_NODEID"' &
work=$!
trap 'kill -TERM "$work"' TERM
wait "$work"
code=$?
if [ "$code" -gt 128 ]; then # the signal came: srun passes it on, and what it ends with is what counts
  wait "$work"
  code=$?
fi
# 75: a checkpoint is there, and the same command goes on from it
[ "$code" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
