"""The trainer's side as it was before 0.28."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer import nccl_common


class NCCLWeightTransferEngine:
    """Only what a trainer calls."""

    @staticmethod
    def trainer_init(init_info: dict[str, Any]) -> nccl_common.Group:
        nccl_common.came.append({"old": True})
        return nccl_common.trainer_init(init_info)
