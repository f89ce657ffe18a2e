"""With this folder on PYTHONPATH, xfuser can be imported where there is no GPU, and runs on gloo.

xfuser 0.7.0 asks torch.cuda many questions as it is imported, and wants Triton. They are answered
as an H100 would for the time of the import; afterwards it takes itself to be on a CPU, for which it
has no backend of torch.distributed and no attention that a ring can add up.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from contextlib import ExitStack
from unittest import mock

ANSWERS = {
    "is_available": True,
    "get_device_name": "none",
    "current_device": 0,
    "get_device_properties": mock.MagicMock(),
    "get_device_capability": (9, 0),
}
TRITON = ("triton", "triton.language")


class Finder(importlib.abc.MetaPathFinder):
    looking = False

    def find_spec(self, name, path=None, target=None):
        if name != "xfuser" or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None:
            spec.loader = Loader(spec.loader)
        return spec


class Loader(importlib.abc.Loader):
    def __init__(self, own):
        self.own = own

    def create_module(self, spec):
        return self.own.create_module(spec)

    def exec_module(self, module):
        import diffusers.pipelines.cogvideo.pipeline_cogvideox  # noqa: F401  # before torch has a GPU
        import torch

        stubs = () if importlib.util.find_spec("triton") else TRITON
        with ExitStack() as stack:
            for name, answer in ANSWERS.items():
                said = mock.patch.object(torch.cuda, name, lambda *_, a=answer, **__: a)
                stack.enter_context(said)
            stack.enter_context(mock.patch.object(torch.version, "cuda", "13.0"))
            for name in stubs:
                spec = importlib.machinery.ModuleSpec(name, None)
                sys.modules[name] = mock.MagicMock(__spec__=spec)
            self.own.exec_module(module)
        for name in stubs:
            del sys.modules[name]
        _on_cpu()


def _on_cpu():
    import torch
    from xfuser import envs
    from xfuser.core.distributed import attention_backend as backends

    def attend(query, key, value, dropout_p, is_causal, attention_kwargs=None):
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return op(query, key, value, dropout_p, is_causal)

    envs.get_torch_distributed_backend = lambda: "gloo"
    kind = backends.AttentionBackendType.SDPA_FLASH
    backends.ATTENTION_FUNCTION_REGISTRY[kind] = attend


sys.meta_path.insert(0, Finder())
