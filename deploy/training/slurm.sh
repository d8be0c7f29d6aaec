#!/bin/bash
# One training on several machines. When Slurm preempts it, or its time is over, it saves, goes back into the queue, and
# continues. All machines must see the dataset and the save folder under the same paths. Options are yolact-train's:
#
#   sbatch --nodes 2 --gpus-per-node 8 slurm.sh --config yolact_base --dataset /shared/coco \
#       --save-folder /shared/weights --batch-size 128
#
#SBATCH --job-name=yolact
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM to this script two minutes before the time is over.
#SBATCH --signal=B:TERM@120

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of this job's own: machines may run several.
port=$((20000 + SLURM_JOB_ID % 10000))
# srun does not take the job's --cpus-per-task by itself.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# Seconds to save in after SIGTERM, before torchrun kills; its own are 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
# Without this, torchrun does not take back a machine that was started again.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

stopped=
# Not to srun itself, which would kill everything at once.
trap 'trap "" TERM; stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:$port" \
    -m yolact.cli.train --resume auto "$@" &
step=$!
wait "$step"
status=$?
if [ -n "$stopped" ]; then
    wait "$step"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
