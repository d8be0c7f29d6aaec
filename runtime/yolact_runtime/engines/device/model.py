"""What all slots of an engine share: the network, the kernels around it, and the priors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.graphs import Graphs
from yolact_runtime.cuda.launch import Kernels
from yolact_runtime.cuda.resource import Resource
from yolact_runtime.engines.device.network import Network
from yolact_runtime.engines.device.processing_plan import ProcessingPlan
from yolact_runtime.engines.outputs import GraphOutputs
from yolact_runtime.metadata import Metadata


class Model(Resource):
    """A network in GPU memory with its kernels and priors; opened and closed with the context current.

    Attributes:
        device: The GPU.
        path: The file, for messages.
        metadata: The engine's metadata.
        network: The network, which opens and closes with the model.
        outputs: What its outputs mean.
        plan: What runs before and after the network.
        kernels: All kernels of `plan`, loaded.
        graphs: Captures CUDA graphs.
        priors: Device address of the priors; None if the network detects.
        most_pixels: Images of at least this size get their masks on the host: GPU memory was too small.

    Raises:
        YolactError: the network does not match its metadata, or no compiler for the kernels is installed.
        DeviceError: the network's library or the GPU failed.
    """

    plan: ProcessingPlan
    kernels: Kernels
    priors: int | None

    def __init__(
        self, device: Device, path: Path, metadata: Metadata, network: Network, graphs: bool = True
    ) -> None:
        super().__init__()
        self.device, self.path, self.metadata, self.network = device, path, metadata, network
        self.outputs = GraphOutputs(metadata, path)
        self.graphs = Graphs(graphs)
        self.most_pixels: float = math.inf

    def _open(self) -> None:
        network = self._held.enter_context(self.network)
        self.plan = ProcessingPlan(self.metadata, network.tensors, self.path)
        self.plan.check()
        self.kernels = self._held.enter_context(Kernels(self.device, self.plan.plans()))
        self.priors = None
        if self.metadata.detect == "runtime":
            table = np.ascontiguousarray(self.outputs.priors, np.float32)
            self.priors = self.device.allocate(self._held, "priors", table.nbytes)
            self.device.upload(self.priors, table, "priors")
