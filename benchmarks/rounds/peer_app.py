# SPDX-License-Identifier: Apache-2.0
"""The same round as a job of plain NVIDIA FLARE: its FedAvg, numpy arrays, an executor that takes no time."""

import os
import time

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnable, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

__all__ = ["PeerExecutor", "PeerPersistor"]


def _arrays(seed: int, scale: float) -> dict[str, np.ndarray]:
    noise, size = np.random.default_rng(seed), int(os.environ["PEER_SIZE"])
    return {f"layer{k}": noise.random(size // 20, np.float32) * np.float32(scale) for k in range(20)}


class PeerPersistor(ModelPersistor):
    """Makes the model and stores each round's as one file, as ours does."""

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        return make_model_learnable(_arrays(0, 1.0), {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        folder = os.environ["PEER_FOLDER"]
        with open(f"{folder}/model.npz", "wb") as file:  # noqa: PTH123 - the executor's style
            np.savez(file, **model["weights"])
        with open(f"{folder}/rounds.txt", "a") as file:  # noqa: PTH123
            file.write(f"{time.time()}\n")


class PeerExecutor(Executor):
    """Sends differences that were made beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self._delta = _arrays(1, 1e-3)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: 10}
        return DXO(DataKind.WEIGHT_DIFF, data=self._delta, meta=meta).to_shareable()
