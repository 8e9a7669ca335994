# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportAttributeAccessIssue=false, reportPrivateUsage=false
"""What NDIF's own settings name, so that it serves models on a machine without a GPU. It runs in the server's environment.

Ray ships the classes that it makes by value, and those they are made of by name: whoever runs one imports this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable


def _trusting_nobody(asked: Any) -> Any:
    """ndif 0.1.2 passes an argument that nnsight 0.8.1 does not take any more."""
    return classmethod(lambda cls, *args, trust_remote_code=False: asked.__func__(cls, *args))


Remotable.describe_checkpoint = _trusting_nobody(Remotable.describe_checkpoint)
Remotable.max_tp_size = _trusting_nobody(Remotable.max_tp_size)
if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda *_: None  # called whatever the device


class Deployment(BaseModelDeployment):
    """A model on the CPU. Its process says which one it holds, so that tests can stop it."""

    CACHEABLE = False

    def load_from_disk(self) -> Any:
        Path(os.environ["RIG_ACTORS"], str(os.getpid())).write_text(self.model_key)
        model: Any = HuggingFaceModel.from_model_key(self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu")
        model._module.requires_grad_(False)
        return model


class Cluster(_ControllerActor):
    """The controller, with what is mended above."""


ModelActor = ray.remote(num_cpus=0, max_restarts=-1)(Deployment)
Controller = ray.remote(num_cpus=0, num_gpus=0, max_restarts=-1, resources={"head": 1})(Cluster)
